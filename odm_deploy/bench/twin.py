"""Opening the float twin of a model on the runtime the model itself runs on: the baseline of every speedup."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from onnx import ModelProto

from odm_deploy.building.build import build_plan
from odm_deploy.building.options import BuildOptions
from odm_deploy.bundle import Bundle
from odm_deploy.bundle.manifest import ONNX_FILE
from odm_deploy.errors import InputError, MissingError
from odm_deploy.graphs.input_shapes import InputShapes, Shape
from odm_deploy.lowering.float_twin import float_twin
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import runtime_class
from odm_deploy.runtimes.tensorrt.engine import TensorRtEngine


def open_twin(
    model: Bundle | Path | str, runtime: Runtime, shape: Shape, options: RuntimeOptions | None = None
) -> tuple[Runtime, str]:
    """Open the float twin of `model` on the runtime and with the options it was opened with; say what the twin is.

    On TensorRT an engine is built from the twin, in half precision: int8 that loses against FP16 is of no use there. It
    gets the optimization profile that the model runs `shape` [N, 3, H, W] in, because kernels chosen for that shape
    alone would be compared with kernels chosen for another. A plan's twin comes from the model.onnx beside it.

    Raises:
        InputError: the model quantizes nothing, or there is no ONNX file to derive a twin from.
        MissingError: a package that deriving the twin needs is not installed.
        BuildError: the twin's engine could not be built.
    """
    bundle = Bundle.open(model)
    if bundle.onnx_path is None:
        raise InputError(f"{bundle} has no float twin", why=f"there is no {ONNX_FILE} beside it to derive one from")
    twin = float_twin(bundle.graph)
    chosen = runtime_class(runtime.name)
    if not isinstance(runtime, TensorRtEngine):
        label = "float twin" if options is None else f"float twin ({options.precision})"
        return chosen.open_bytes(twin.SerializeToString(), options, label="the float twin"), label
    plan = half_precision_plan(twin, runtime.name, runtime.image_shapes(shape))
    return chosen.open_bytes(plan, options, label="the float twin"), "float twin (fp16)"


def half_precision_plan(twin: ModelProto, builder: str, shapes: InputShapes) -> bytes:
    """An engine of a float twin, in half precision unless the twin has some already.

    Raises:
        MissingError: onnx-ir or the builder is not here.
        BuildError: the builder refused.
    """
    if importlib.util.find_spec("onnx_ir") is None:
        raise MissingError("no half-precision twin", why="onnx-ir is not installed", fix="pip install onnx-ir")
    import onnx
    import onnx_ir as ir

    from odm_deploy.lowering.half_precision import convert_rest_to_half

    # The pass goes by the types of tensors, which the twin does not carry.
    typed = onnx.shape_inference.infer_shapes(twin)
    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    if not any(tensor.data_type in half for tensor in typed.graph.initializer):
        graph = ir.from_proto(typed)
        convert_rest_to_half(graph)
        typed = ir.to_proto(graph)
    return build_plan(typed, BuildOptions(builder=builder, shapes=shapes))
