"""From a float ONNX file to a network in torch that computes the same, which is tried before anybody uses it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from onnx import ModelProto, TensorProto, numpy_helper

from odm_deploy.errors import InputError, MissingError, UsageError
from odm_deploy.graphs.files import read_onnx
from odm_deploy.graphs.growth import refuse_growth
from odm_deploy.graphs.plain_run import PlainRun
from odm_deploy.installing import install_extra
from odm_deploy.networks.foreign import PROBE_PX, ForeignNetwork, foreign_network
from odm_deploy.networks.onnx_layers import LAYERS
from odm_deploy.networks.onnx_layout import put_channels_first
from odm_deploy.networks.onnx_network import (
    ONNX_BUILDER,
    STRIPPED,
    OnnxNetwork,
    pack_graph,
    refuse_unknown_operators,
)
from odm_deploy.networks.weight_files import check_finite
from odm_deploy.terminal import say

LARGEST_ERROR = 1e-4
"""Of the largest output value: float32 sums in another order differ by a few millionths."""

SIZES_PX = (PROBE_PX, (64, 32))
"""Heights and widths at which network and file are compared."""

_LARGEST_FIXED_PX = 512
"""Stated sizes beyond it are not tried."""

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger")
# They would make operators of ONNX Runtime's own, or join what is quantized apart.
_UNWANTED = ["MatMulAddFusion", "GeluFusionL1", "LayerNormFusionL1", "ConstantSharing", "TransposeOptimizer"]
_RESIZES = ("Resize", "Upsample")
_LARGEST_NUMBER = 8
_NAMED = 3
"""Outputs that are left out, in a line."""
_FIRST_VERSION_WITH_CONSTANTS = 4
"""Of the file format; before it every constant was an input as well."""


def network_from_onnx(path: Path | str, scale: int | None = None, **of_input: Any) -> ForeignNetwork:
    """The network in a float ONNX file, checked against ONNX Runtime at two sizes.

    Args:
        path: an ONNX file with one input, float images [N, 3, H, W] or [N, H, W, 3]. Half precision becomes float32, a
            fixed height and width become any, where the graph allows it.
        scale: the upscaling factor, checked against what the network does.
        of_input: `input_range` and `channel_order`, as `foreign_network` takes them.

    Raises:
        UsageError: the graph is quantized, or holds operators that cannot be converted.
        InputError: the file cannot be used, or the converted network computes something else.
        MissingError: ONNX Runtime is not installed.
    """
    read = read_onnx(Path(path))[0]
    _check_outputs_and_order(read, path)
    put_channels_first(read)
    first, *others = [value.name for value in read.graph.output]
    sizes = [*SIZES_PX, *_beyond_fixed_size(read)]
    reference = _plain_form(read, path)
    refuse_growth(reference, str(path))
    module, text = convert_graph(reference)
    check_finite(module.state_dict(), path)
    error = _compare(module, reference, sizes, path)
    count = len(reference.graph.node)
    say(f"{path}: {count} ONNX operators converted, within {error:.1e} of ONNX Runtime's output")
    if others:
        left = ", ".join([*others[:_NAMED], *([f"{len(others) - _NAMED} more"] if others[_NAMED:] else [])])
        verb = "is" if len(others) == 1 else "are"
        say(f"{path}: its first output, {first}, is taken for the image; {left} {verb} left out")
    return foreign_network(module, builder=ONNX_BUILDER, arguments={"graph": text}, scale=scale, **of_input)


def convert_graph(model: ModelProto) -> tuple[OnnxNetwork, str]:
    """The module that computes a float32 graph, in eval mode, and the text it is built from again.

    Args:
        model: the graph, without local functions; its first input is the only one. It is not changed.

    Raises:
        InputError: ONNX Runtime does not take the graph.
        UsageError: it holds operators that cannot be converted.
    """
    simple = _simplified(model)
    refuse_unknown_operators(simple.graph.node)
    arrays = _strip(simple)
    text = pack_graph(simple)
    module = OnnxNetwork(text).eval()
    module.load_weights(arrays)
    return module, text


def _beyond_fixed_size(model: ModelProto) -> list[tuple[int, int]]:
    """A size larger than the one the file states, where a graph that holds that size in its arithmetic shows it."""
    filled = {tensor.name for tensor in model.graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in filled]
    stated = [dim.dim_value for dim in shapes[0][2:]] if shapes and len(shapes[0]) == 4 else []
    if not any(stated):
        return []
    rows, cols = (min(size, _LARGEST_FIXED_PX) + 16 for size in stated)
    return [(rows, cols)]


def _check_outputs_and_order(model: ModelProto, path: Path | str) -> None:
    """Refuse what ONNX Runtime takes, or fails at in words of its own, and nothing here converts.

    Raises:
        UsageError: no output, one that is no float image, or sparse weights.
        InputError: nodes that stand before what they read.
    """
    if not model.graph.output:
        raise UsageError(f"{path} has no output", fix="export the network again: one image is what is wanted")
    kind = model.graph.output[0].type.tensor_type.elem_type
    if kind not in (TensorProto.UNDEFINED, TensorProto.FLOAT, *_HALVES):
        name = str(TensorProto.DataType.Name(kind))  # pyright: ignore[reportArgumentType]
        raise UsageError(f"{path} gives {name}", fix="an output of float images [N, 3, H, W] is wanted")
    if model.graph.sparse_initializer:
        count = len(model.graph.sparse_initializer)
        raise UsageError(f"{path} holds sparse weights", why=f"{count} tensors", fix="export it with dense ones")
    missing = {name for node in model.graph.node for name in node.output if name}
    for node in model.graph.node:
        if early := missing.intersection(node.input):
            raise InputError(
                f"{path} is not in the order in which it runs",
                why=f"a {node.op_type} reads {min(early)}, which is made behind it",
                fix="sort its nodes, or export the network again",
            )
        missing.difference_update(node.output)


def _plain_form(model: ModelProto, path: Path | str) -> ModelProto:
    """The graph without functions, in float32, for images of any size. Raises as `network_from_onnx`."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    quantizers = sorted({node.op_type for node in model.graph.node if node.op_type in _QUANTIZERS})
    if quantizers:
        fixable = set(quantizers) <= {"QuantizeLinear", "DequantizeLinear"}
        raise UsageError(
            f"{path} is quantized already",
            why=f"it holds {', '.join(quantizers)}",
            fix=f"odm-deploy lint --fix {path} -o OUT.onnx makes it run, or take the float file"
            if fixable
            else "take the float file",
        )
    filled = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in filled]
    # Constants that are inputs, too, are not computed with before the network runs.
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, _FIRST_VERSION_WITH_CONSTANTS)
    inputs = list(model.graph.input)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise UsageError(f"{path} takes {len(inputs)} inputs", why=names, fix="one image is what is enlarged here")
    kind = inputs[0].type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    name = str(TensorProto.DataType.Name(kind.elem_type))  # pyright: ignore[reportArgumentType]
    if kind.elem_type not in (TensorProto.FLOAT, *_HALVES) or len(dims) != 4 or dims[1] not in (3, None):
        shown = "x".join("?" if size is None else str(size) for size in dims)
        why = "an input of float RGB images [N, 3, H, W] is wanted"
        raise UsageError(f"{path} takes {name} {shown}", why=why, fix="take a network of such images")
    for index in (0, 2, 3):
        kind.shape.dim[index].Clear()
        kind.shape.dim[index].dim_param = ("n", "c", "h", "w")[index]
    _to_float32(model)
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.output[1:]
    return model


def _to_float32(model: ModelProto) -> None:
    """Half and double precision as float32, in place; nothing of a network's weights is lost by more than that."""

    def convert(tensor: TensorProto) -> None:
        if tensor.data_type in _HALVES:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))

    for tensor in model.graph.initializer:
        convert(tensor)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type in _HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                convert(attribute.t)
            elif attribute.name in ("to", "dtype") and attribute.i in _HALVES:
                attribute.i = TensorProto.FLOAT


def _simplified(model: ModelProto) -> ModelProto:
    """The graph as ONNX Runtime's basic optimizations leave it: constants computed, batch norms in convolutions."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingError("onnxruntime is not installed", fix=install_extra("cpu")) from error
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory(prefix="odm-deploy-") as folder:
        settings.optimized_model_filepath = str(Path(folder) / "basic.onnx")
        try:
            ort.InferenceSession(
                model.SerializeToString(),
                settings,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_UNWANTED,
            )
        except Exception as error:  # its exception types share no base but Exception
            why = " ".join(str(error).removeprefix("[ONNXRuntimeError] : ").split())[:300]
            raise InputError("ONNX Runtime cannot load this graph", why=why) from error
        return onnx.load(settings.optimized_model_filepath)


def _strip(model: ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    """Take the weights out of a graph, in place; returns them by name. Numbers that steer operators stay."""
    steering, weighing, other = set[str](), set[str](), set[str]()
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            steers = node.op_type in _RESIZES and index > 0
            (steering if steers else weighing if node.op_type in LAYERS else other).add(name)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in model.graph.initializer:
        name, array = tensor.name, numpy_helper.to_array(tensor)
        steers = name in steering and name not in weighing | other and array.size <= _LARGEST_NUMBER
        if tensor.data_type != TensorProto.FLOAT or (name not in weighing and (array.size == 1 or steers)):
            continue
        arrays[name] = array
        empty = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape, doc_string=STRIPPED)
        tensor.CopyFrom(empty)
    del model.metadata_props[:]
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    return arrays


def _compare(module: OnnxNetwork, reference: ModelProto, sizes: list[tuple[int, int]], path: Path | str) -> float:
    """The largest difference from ONNX Runtime as a part of the largest output value. Raises as `network_from_onnx`."""
    name = next(value.name for value in reference.graph.input)
    run = PlainRun(reference, [reference.graph.output[0].name])
    largest, factors = 0.0, set[tuple[float, float]]()
    for seed, (height, width) in enumerate(sizes):
        image = np.random.default_rng(seed).random((1, 3, height, width), np.float32)
        try:
            wanted = next(iter(run({name: image}).values()))
        except InputError as error:
            raise UsageError(
                f"{path} does not run on images of {height}x{width}",
                why=error.why,
                fix="export it with dynamic height and width",
            ) from error
        try:
            with torch.no_grad():
                got = module(torch.from_numpy(image)).numpy()
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
            raise UsageError(
                f"{path} cannot be converted", why=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            ) from error
        if got.shape != wanted.shape:
            raise InputError(f"{path} cannot be converted", why=f"{got.shape} instead of {wanted.shape}")
        if wanted.ndim != 4 or wanted.shape[1] != 3:
            raise UsageError(
                f"{path} makes no RGB image",
                why=f"its first output is {'x'.join(map(str, wanted.shape))} for an image of 1x3x{height}x{width}",
                fix="take a network that enlarges or restores images",
            )
        if not np.isfinite(wanted).all():
            bad = int((~np.isfinite(wanted)).sum())
            raise InputError(
                f"{path} makes no image",
                why=f"{bad} of {wanted.size} values of its output are NaN or infinite",
                fix="check its weights, and how it was exported",
            )
        # A graph made for one size may run on another, and crop or pad the image to its own.
        factors.add((wanted.shape[-2] / height, wanted.shape[-1] / width))
        if len(factors) > 1:
            raise UsageError(
                f"{path} is made for images of one size",
                why=f"{height}x{width} becomes {wanted.shape[-2]}x{wanted.shape[-1]}, other sizes another multiple",
                fix="export it with dynamic height and width",
            )
        largest = max(largest, float(np.abs(got - wanted).max() / max(float(np.abs(wanted).max()), 1e-9)))
    if not largest <= LARGEST_ERROR:
        raise InputError(
            f"{path} cannot be converted",
            why=f"the converted network differs from ONNX Runtime by {largest:.1e} of the largest value",
            fix="please report this graph, or use the network's weights instead",
        )
    return largest
