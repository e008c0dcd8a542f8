"""What OpenVINO computes wrongly or refuses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from odm_deploy.graphs.editor import constant_array
from odm_deploy.graphs.shapes import infer_types
from odm_deploy.lowering.quirks.walking import ARITHMETIC, MOVES, POINTWISE, producers_of, readers_of, with_constant

_CARRIES = {"Clip", "LeakyRelu", "PRelu", "Pad", "Relu", "Transpose"}
_TAKES = {"Expand", "Gather", "GatherElements", "GatherND", "Split", "Squeeze", "Tile", "Unsqueeze"}
_SHAPED = {"Expand", "Pad", "Reshape", "Resize", "Slice", "Tile"}
_PRODUCTS = {"Einsum", "Gemm", "MatMul"}
_WHOLE = {ir.DataType.INT32, ir.DataType.INT64}
_EXTREMES = {"ReduceMax", "ReduceMin"}
_NORMALIZATIONS = {"GroupNormalization", "InstanceNormalization", "LayerNormalization"}


def shape_of_channel_arithmetic(x: ir.Value) -> tuple[int, ...]:
    """Shape of the constant per channel that `x` was computed with, through arithmetic with constants; () without one.

    OpenVINO 2026.4 merges such arithmetic (a mean colour, a shift per channel), two scalar bounds and the quantizer
    into one operator, which then, on images of dynamic size, treats all channels like the first. Bounds per channel
    are not merged.
    """
    while (operands := with_constant(x)) is not None:
        x, shape = operands
        if shape and max(shape) > 1:
            return shape
    return ()


def loses_channels(x: ir.Value) -> bool:
    """Whether OpenVINO may not know how many channels `x` has, which was computed with a constant per channel.

    It works out shapes at run time where they are computed in ways it does not follow, such as with remainders of
    windows; up to the next convolution all dimensions are unknown then. OpenVINO 2026.4 makes one operator of a factor
    per channel and the quantizer even so, and treats all channels like the first. One bound keeps them apart. Where
    channels are the last axis, it does not.
    """
    values, seen = [x], set[ir.Value]()
    while not (shape := shape_of_channel_arithmetic(x)):
        # What moves values on the way to the quantizer is moved out of it, and what rectifies is part of the operator.
        node, operands = x.producer(), with_constant(x)
        if operands is not None:
            x = operands[0]
        elif node is not None and node.op_type in _CARRIES and node.inputs[0] is not None:
            x = node.inputs[0]
        else:
            return False
    if shape[-1] > 1:
        return False
    while values:
        value = values.pop()
        node = value.producer()
        if node is None or value in seen or node.op_type in ("Conv", "ConvTranspose"):
            continue
        seen.add(value)
        computed = [operand for operand in node.inputs if operand is not None and operand.const_value is None]
        if node.op_type in _SHAPED and len(computed) > 1:
            return True
        values += computed
    return False


def flips_channels(x: ir.Value) -> bool:
    """Whether `x` was computed with a factor per channel, and some are negative.

    OpenVINO 2026.4 makes one operator of such factors and the quantizer, whose ends change places, and where shapes are
    dynamic and something else reads what is multiplied, most codes are wrong. One bound keeps them apart.
    """
    negative, per_channel = False, False
    while (node := x.producer()) is not None:
        operands = with_constant(x)
        if operands is not None:
            constant = next(array for value in node.inputs if (array := constant_array(value)) is not None)
            factor = node.op_type in ("Mul", "Div")
            subtracted = node.op_type == "Sub" and node.inputs[1] is operands[0]
            negative |= subtracted or (factor and float(constant.astype(np.float64).min()) < 0.0)
            per_channel |= factor and constant.size > 1
            x = operands[0]
        elif node.op_type in _CARRIES | {"Neg"} and node.inputs[0] is not None:
            negative |= node.op_type == "Neg"
            x = node.inputs[0]
        else:
            break
    return negative and per_channel


def convolutions_of_one_pixel(model: ir.Model) -> list[ir.Node]:
    """Convolutions of codes whose results OpenVINO would take for others, as in channel attention.

    OpenVINO 2026.4 makes one operator of a convolution of codes and the arithmetic with constants per channel behind it
    (a shift, a gain, the slopes of a PReLU). Where the maps have one pixel, and anything about them is dynamic, such as
    the batch, that one reads the constants wrongly; from two pixels on it is right. A bound right behind a convolution
    keeps them apart.
    """
    suspects = [node for node in model.graph if _meets_channel_arithmetic(node)]
    types = infer_types(ir.to_proto(model)) if suspects else {}
    found: list[ir.Node] = []
    for node in suspects:
        kind = types.get(node.outputs[0].name or "")
        sizes = [] if kind is None else kind.shape.dim[2:]
        if sizes and all(size.dim_value == 1 for size in sizes):
            found.append(node)
    return found


def shared_without_bias(node: ir.Node) -> bool:
    """Whether OpenVINO would lose the scales of a convolution of codes for one of those who read its result.

    Without a bias, or with zeros for one, OpenVINO 2026.4 computes the scales in an operator of their own, then in the
    convolution, and where shapes are dynamic, whoever has taken them in by then applies them twice: a quantizer gives
    the code of zero for everything. A bound right behind the convolution leaves it one reader.
    """
    if node.op_type != "Conv" or constant_array(node.inputs[1]) is not None:
        return False
    bias = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    return (bias is None or not bias.any()) and len(node.outputs[0].uses()) > 1


def convolutions_before_products(model: ir.Model) -> list[ir.Node]:
    """Convolutions before a quantizer, with float weights or codes that go to a product, in graphs with such products.

    OpenVINO 2026.4 makes one operator of the two. Compiled for any size, which it is where a graph has products of
    matrices, its codes are wrong in some graphs, such as one where they are moved to a product with float constants, or
    split and cut into windows by indices.
    """
    if not any(node.op_type in _PRODUCTS for node in model.graph):
        return []
    found, through = list[ir.Node](), {"QuantizeLinear", "DequantizeLinear"} | MOVES | _TAKES
    for node in model.graph:
        readers = readers_of(node, through) if node.op_type == "Conv" else set()
        is_float = node.op_type == "Conv" and constant_array(node.inputs[1]) is not None
        quantized = any(reader.op_type == "QuantizeLinear" for reader in readers_of(node, MOVES))
        if quantized and (is_float or any(reader.op_type in _PRODUCTS for reader in readers)):
            found.append(node)
    return found


def convolutions_whose_size_is_read(model: ir.Model) -> set[ir.Node]:
    """Convolutions before a quantizer whose height or width steers something behind, such as a roll.

    Of values that have one size, OpenVINO 2026.4 reads it off the first, a convolution without its bias, which is not
    made part of it then, but of the quantizer. Where shapes are dynamic, all channels get the bias of the first one. A
    bound right behind the convolution keeps them apart.
    """
    keep = {"QuantizeLinear", "DequantizeLinear", "MatMul", "Softmax"} | MOVES | POINTWISE | _TAKES | _NORMALIZATIONS
    return {
        producer
        for node in model.graph
        if node.op_type == "Shape" or (node.op_type == "Slice" and any(map(_is_computed, node.inputs[1:])))
        for producer in producers_of(node, keep)
        if producer.op_type == "Conv"
        and any(reader.op_type == "QuantizeLinear" for reader in readers_of(producer, POINTWISE | MOVES))
    }


def extremes_of_codes(model: ir.Model) -> list[ir.Node]:
    """Reductions to the largest or smallest whose results are quantized, behind arithmetic point by point or at once.

    OpenVINO 2026.4 makes one operator of all of it, and nearly all codes are wrong, of whatever axis and image size.
    It moves a quantizer before what joins or moves values, too. A bound right behind the reduction keeps them apart.
    """
    return [
        node
        for node in model.graph
        if node.op_type in _EXTREMES
        and any(reader.op_type == "QuantizeLinear" for reader in readers_of(node, POINTWISE | MOVES))
    ]


def leaves_out(quantizer: ir.Node) -> bool:
    """Whether OpenVINO would leave out this quantizer, between a convolution and a sum.

    OpenVINO 2026.4 makes one operator of convolution and sum, and what it adds is not rounded. A bound on the codes,
    even to all that there are, keeps them apart.
    """
    behind = (use.node for use in quantizer.outputs[0].uses())
    sums = [node for node in behind if node.op_type == "Add" and all(map(_is_computed, node.inputs))]
    source = quantizer.inputs[0].producer() if quantizer.inputs[0] is not None else None
    return bool(sums) and source is not None and source.op_type == "Conv"


def runs_of_groups(weight: ir.Value) -> list[ir.Node]:
    """The grouped convolutions that read `weight`; where there are several, each needs codes of its own.

    OpenVINO 2026.4 reshapes the codes of a grouped convolution where they are, and another one that shares them, as a
    layer does that runs twice, computes something else.
    """
    readers = [use.node for use in weight.uses() if use.node.op_type == "Conv"]
    return [node for node in readers if "group" in node.attributes and node.attributes["group"].as_int() > 1]


def truncates_bounds(node: ir.Node) -> bool:
    """Whether OpenVINO would clip at the level next to a bound, of a ReLU6 or the like, and not at the bound.

    OpenVINO 2026.4 moves a quantizer's step, and what is added to its levels, behind a Clip of these, and makes a whole
    number of codes of each bound: 6 / 0.51 becomes 11, which is 5.58. It makes Clips of Max and Min of one number each,
    too, but not of Relu and Min, nor of bounds per channel.
    """
    if node.op_type != "Clip":
        return False
    bounds = [constant_array(value) for value in node.inputs[1:]]
    if not any(bound is not None and bound.dtype.kind == "f" and float(bound) != 0.0 for bound in bounds):
        return False
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    while producer is not None and producer.op_type in MOVES | {"Add"}:
        producer = producer.inputs[0].producer() if producer.inputs[0] is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def drops_axis_of_factors(node: ir.Node) -> bool:
    """Whether OpenVINO would keep an axis that is dropped, and refuse the graph: `(x * f)[:, :, 0]`, f per channel.

    OpenVINO 2026.4 computes such factors, also those of a batch norm, behind a Gather of one index, but with as many
    axes as before it. A Gather of a list of one index, whose axis is dropped by an operator of its own, it leaves.
    """
    if node.op_type != "Gather" or (index := constant_array(node.inputs[1])) is None or index.ndim:
        return False
    for producer in producers_of(node, MOVES | ARITHMETIC | {"Gather", "Squeeze", "Unsqueeze"}):
        constants = [array for each in producer.inputs if (array := constant_array(each)) is not None]
        factors = producer.op_type in ("Mul", "Div") and any(array.size > 1 for array in constants)
        if factors or producer.op_type == "BatchNormalization":
            return True
    return False


def loses_epsilon(node: ir.Node) -> bool:
    """Whether OpenVINO would normalize codes where their levels should be, and add its epsilon to another variance.

    What is brought to a deviation of 1 has no scale, so OpenVINO 2026.4 leaves out the step of a quantizer in front of
    a normalization, also where sums stand between them. But a variance of 4e-6 is 40 % of the epsilon, and that of the
    codes is not.
    """
    return node.op_type in _NORMALIZATIONS and _comes_from_codes(node)


def averages_codes(node: ir.Node) -> bool:
    """Whether dequantized values are averaged by windows.

    OpenVINO 2026.4 averages the codes, and pads them with 0 where the code of zero should be: next to the border, or
    where a last window reaches beyond it, nearly all values are wrong. Where the averages go on to a normalization, as
    in `y / (y.abs().sum(1) + 1)`, half of the codes behind it are, by up to ten steps of 8 bits.
    """
    return node.op_type == "AveragePool" and _comes_from_codes(node)


def folds_padding(node: ir.Node) -> bool:
    """Whether OpenVINO would make the zeros padded before a transposed convolution those that this leaves out.

    OpenVINO 2026.4 takes what is padded off the convolution's own padding, which is counted in pixels of the result,
    and its results are too small where there are several of them for each pixel.
    """
    if node.op_type != "ConvTranspose" or "strides" not in node.attributes or node.inputs[0] is None:
        return False
    padding = node.inputs[0].producer()
    return padding is not None and padding.op_type == "Pad" and max(node.attributes["strides"].as_ints()) > 1


def shuffles_joined(node: ir.Node) -> bool:
    """Whether dequantized values are joined along channels and then go through a pixel shuffle.

    OpenVINO 2026.4 takes zero points out of the parts and moves them, one for each channel, behind the shuffle, where
    there are fewer channels; then it refuses the graph.
    """
    if node.op_type != "DepthToSpace":
        return False
    producers = producers_of(node, MOVES | POINTWISE)
    return any(producer.op_type == "Concat" for producer in producers) and _comes_from_codes(node)


def keeps_signs(node: ir.Node) -> bool:
    """Whether OpenVINO would leave whole numbers negative whose absolute value is asked for, as of reflected indices.

    OpenVINO 2026.4 does where it computes them at compilation, which it can in graphs of one size; pixels are then
    taken from the other end of the image.
    """
    return node.op_type == "Abs" and node.inputs[0] is not None and node.inputs[0].dtype in _WHOLE


def comes_from_concat(x: ir.Value) -> bool:
    """Whether `x` is a Concat, or computed from one point by point: then an upper bound belongs before the quantizer.

    OpenVINO 2026.4 gives wrong codes, most of them, for a quantizer of all 256 codes behind a Concat of float tensors.
    One bound, even the one that int8 has anyway, makes them right.
    """
    while (node := x.producer()) is not None:
        if node.op_type == "Concat":
            return True
        computed = [value for value in node.inputs if value is not None and value.const_value is None]
        if node.op_type not in POINTWISE or len(computed) != 1:
            return False
        x = computed[0]
    return False


def _is_computed(value: ir.Value | None) -> bool:
    """Whether an input is there, and no constant."""
    return value is not None and constant_array(value) is None


def _meets_channel_arithmetic(node: ir.Node) -> bool:
    """Whether a convolution with quantized weights goes point by point into arithmetic with a constant per channel."""
    if node.op_type != "Conv" or constant_array(node.inputs[1]) is not None:
        return False
    arithmetic = [reader for reader in readers_of(node, POINTWISE) if reader.op_type in POINTWISE]
    constants = [constant_array(value) for reader in arithmetic for value in reader.inputs]
    return any(array is not None and array.size > 1 for array in constants)


def _comes_from_codes(node: ir.Node) -> bool:
    """Whether dequantized values reach the first input of `node` by moves, arithmetic and what keeps their order."""
    through = MOVES | ARITHMETIC | _TAKES | _CARRIES | {"MaxPool"}
    return any(producer.op_type == "DequantizeLinear" for producer in producers_of(node, through))
