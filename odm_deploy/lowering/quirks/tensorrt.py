"""What TensorRT would compute in float."""

from __future__ import annotations

import onnx_ir as ir

from odm_deploy.graphs.editor import constant_array, only_consumer
from odm_deploy.lowering.markers import stored_weight


def missing_additions(consumer: ir.Node) -> list[int]:
    """Widths of the vectors of zeros to add to what `consumer` makes of its quantized input: none, one or two.

    TensorRT-RTX 1.7 pulls slices of a matrix product, such as attention's queries, keys and values, through one
    addition (the bias) into the dequantized weight, and then multiplies in float. It leaves a product behind two
    additions alone, runs it as int8 and folds both. (They have to be vectors: slicing a single number fails its build.)
    """
    if consumer.op_type != "MatMul":
        return []
    width, found = 0, 0
    value = consumer.outputs[0]
    while (user := only_consumer(value)) is not None and user.op_type == "Add":
        constant = next((array for each in user.inputs if (array := constant_array(each)) is not None), None)
        if constant is None or constant.ndim != 1:
            break
        width, found, value = constant.size, found + 1, user.outputs[0]
    if not width:
        # As many columns as the weight has; none where both factors are computed.
        weight, transposed = stored_weight(consumer.inputs[1])
        array = constant_array(weight)
        width = 0 if array is None or array.ndim != 2 else array.shape[0 if transposed else 1]
    return [width] * (2 - min(found, 2)) if width else []
