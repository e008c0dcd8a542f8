"""Whether a graph is the one that its model.pt lowers to: lowered again, and compared constant by constant.

What a runtime computes is compared within what rounding explains, and a constant may be wrong by less: a scale off by
one unit in its last place moves a few ties, as another runtime does. Here nothing has to be explained. A constant that
is not the one that lowering gives is a fault, whatever it changes.

Other versions of this program and of PyTorch's exporter may wire a graph otherwise. A manifest says who wrote it. By
whoever runs here, any difference is a fault; by others, other constants are, while another wiring is named, and left to
the comparison of what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from odm_deploy.bundle import Bundle
from odm_deploy.bundle.image_format import ImageFormat
from odm_deploy.bundle.manifest import CPU_ONNX_FILE
from odm_deploy.errors import InputError, OdmError
from odm_deploy.graphs.differences import Allow, differences, is_rounding
from odm_deploy.lowering.lower import LoweringOptions, Precision, lower_each
from odm_deploy.lowering.metadata import Tap, is_marked_exact, read_taps
from odm_deploy.lowering.written_by import written_by
from odm_deploy.progress import Track, untracked
from odm_deploy.proof.graph_check import GraphCheck
from odm_deploy.proof.other_wiring import differences_in_constants
from odm_deploy.quantization.model import QuantizedModel

_HALF: dict[int, Precision] = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
_FLOATS = (onnx.TensorProto.FLOAT, *_HALF)
_EXCERPT = 200
_STAGE = "lowering model.pt again, to compare every constant"
_OPTIONS = {
    "precision": ("fp32", "fp16", "bf16"),
    "io": ("float32", "uint8"),
    "layout": ("nchw", "nhwc"),
    "order": ("rgb", "bgr"),
    "target": ("tensorrt", "cpu"),
}
"""What options of lowering a manifest states, and their values."""


def check_graphs(bundles: Sequence[Bundle], model: QuantizedModel, *, track: Track = untracked) -> list[GraphCheck]:
    """Compare the graph of each bundle, as some runtime sees it, with what `model` lowers to the same way.

    `track` shows how far the lowering has come.

    Raises:
        InputError: a damaged manifest or metadata, or an unreadable graph.
    """
    try:
        lowered = lower_each(model, [way_of(bundle) for bundle in bundles], track=track, stage=_STAGE)
    except OdmError as error:
        # By whomever: with nothing to compare, the graph may be any.
        return [GraphCheck(_name(each), wiring=[f"model.pt cannot be lowered this way: {error}"]) for each in bundles]
    return [check_graph(bundle, model, expected, track) for bundle, expected in zip(bundles, lowered, strict=True)]


def check_graph(
    bundle: Bundle, model: QuantizedModel, expected: onnx.ModelProto, track: Track = untracked
) -> GraphCheck:
    """Compare the graph of a bundle with `expected`, what `model` lowers to the same way. Raises as `check_graphs`."""
    graph, writer = bundle.graph, _other_writer(bundle, model)
    allow = _computed(model, expected)
    found = differences(graph, expected, allow)
    if not found.wiring and read_taps(graph) != [_renamed(tap, found.names) for tap in read_taps(expected)]:
        found.wiring.append("its metadata says otherwise where its quantizers are")
    if is_marked_exact(graph) != (model.exact is not None):
        found.wiring.append(f"its metadata says {'that' if model.exact is None else 'nothing of it that'} it is exact")
    if found and writer is not None:
        strictly = found
        found = differences_in_constants(graph, expected, _for_others(bundle, model, track), model, allow)
        # In the same wiring, too, constants may have other shapes.
        found.wiring = strictly.wiring or [each for each in strictly.constants if each not in found.constants]
    return GraphCheck(_name(bundle), len(found.pairs), found.constants, found.wiring, writer)


def _for_others(bundle: Bundle, model: QuantizedModel, track: Track) -> list[onnx.ModelProto]:
    """What a model lowers to for the other kind of runtime."""
    way = way_of(bundle)
    if way.precision != "fp32":
        return []
    other = replace(way, target="cpu" if way.target == "tensorrt" else "tensorrt")
    return lower_each(model, [other], track=track, stage=_STAGE)


def _renamed(tap: Tap, names: Mapping[str, str]) -> Tap:
    """A tap of a graph whose tensors have these names elsewhere."""
    joined = {names.get(codes, codes): is_rectified for codes, is_rectified in tap.joined.items()}
    source, codes = (names.get(name, name) for name in (tap.source, tap.codes))
    return replace(tap, source=source, codes=codes, joined=joined)


def _name(bundle: Bundle) -> str:
    return "the graph" if bundle.onnx_path is None else bundle.onnx_path.name


def _other_writer(bundle: Bundle, model: QuantizedModel) -> str | None:
    """Who wrote a graph by its manifest; None for whoever runs here."""
    stated = (_entry(bundle) or {}).get("written_by")
    if not isinstance(stated, str):
        return "an unknown version"
    return None if stated == written_by(model) else stated[:_EXCERPT]


def _entry(bundle: Bundle) -> Mapping[str, Any] | None:
    """What the manifest says about the graph; None for a file that it does not speak of, or not of its images."""
    if bundle.manifest is None or bundle.image_format is None:
        return None
    return bundle.manifest.cpu_onnx if _name(bundle) == CPU_ONNX_FILE else bundle.manifest.onnx


def way_of(bundle: Bundle) -> LoweringOptions:
    """How a graph was lowered: as its manifest says, or, of one alone, as it shows.

    Raises:
        InputError: the manifest names an option that there is not.
        UsageError: options that exclude each other.
    """
    stated = _entry(bundle)
    if stated is None:
        return _told_from(bundle.graph)
    # Older bundles say less, and have what is the default now.
    options = {name: stated[name] for name in _OPTIONS if name in stated}
    for name, value in options.items():
        if value not in _OPTIONS[name]:
            raise InputError("the manifest is damaged", why=f"{name} is {value!r:.100}")
    return LoweringOptions(**options)


def _told_from(model: onnx.ModelProto) -> LoweringOptions:
    """The options that a graph without a manifest shows."""
    graph = model.graph
    zeros = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear" and len(node.input) > 2}
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    of_cpus = any(kinds.get(name) == onnx.TensorProto.UINT8 for name in zeros)
    options = LoweringOptions(target="cpu" if of_cpus else "tensorrt")
    if not of_cpus and (halves := [_HALF[kind] for kind in kinds.values() if kind in _HALF]):
        options = replace(options, precision=halves[0])
    if not graph.input or graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.UINT8:
        return options
    edge = graph.input[0]
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in edge.type.tensor_type.shape.dim]
    images = ImageFormat.told_from(edge.name, np.dtype(np.uint8), sizes)
    return replace(options, io="uint8", layout=images.layout, order=images.order)


def _computed(model: QuantizedModel, expected: onnx.ModelProto) -> Allow:
    """Which constants may be rounded otherwise, those that the exporter computed of others: sums of float32 among them.

    Numbers of the checkpoint are the same everywhere, rearranged or not, and so is what a dialect makes of them value
    by value and names after their layer.
    """
    state = model.network.state_dict()
    known = {*state, *(key.rpartition(".")[0] for key in state), *model.layers, *model.signals}
    candidates = [
        tensor
        for tensor in expected.graph.initializer
        if tensor.data_type in _FLOATS and np.prod(tensor.dims) > 1 and not _is_named_after(tensor.name, known)
    ]
    if not candidates:
        return lambda name, a, b: False
    tensors = (*state.values(), *model.network.buffers())
    numbers = np.abs(np.concatenate([each.detach().double().numpy().reshape(-1) for each in tensors]))
    values = {each.name: np.abs(numpy_helper.to_array(each).astype(np.float64)) for each in candidates}
    computed = {name for name, value in values.items() if not np.isin(value, numbers).all()}
    return lambda name, a, b: name in computed and is_rounding(a, b)


def _is_named_after(name: str, known: Set[str]) -> bool:
    """Whether a constant has one of these names, or one that begins with it and a dot."""
    while name:
        if name in known:
            return True
        name = name.rpartition(".")[0]
    return False
