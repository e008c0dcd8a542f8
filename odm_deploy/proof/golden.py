"""Golden outputs: what an exact model computes on fixed images, recorded at export and compared by whoever runs it.

Integers decide (`interpret`), not a float engine. Whoever runs the bundle, on whatever machine, must get these bytes;
`verify` demands it, and where they differ it names the first layer that computes something else.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from odm_deploy.bundle import Bundle
from odm_deploy.bundle.golden import Golden, GoldenImage, golden_images, hash_of
from odm_deploy.errors import InputError, UsageError
from odm_deploy.graphs.index import GraphIndex
from odm_deploy.imaging.pixels import round_to_uint8
from odm_deploy.lowering.metadata import Tap, layer_of_run, read_taps, run_name
from odm_deploy.proof.teacher_forcing import code_type, codes_from
from odm_deploy.quantization.exact.interpreter import interpret
from odm_deploy.quantization.exact.program import Integers, Program, Quantize, Step
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import open_runtime


@dataclass
class GoldenReport:
    """How a runtime fared on the golden images."""

    images: int = 0
    failures: list[str] = field(default_factory=list[str])
    """What differs, one clause each; empty when every byte is as it should be."""
    first_layer: str | None = None
    """The first layer, in the order of the graph, that computes something else; None where no layer does."""

    def to_dict(self) -> dict[str, Any]:
        """The key `golden` of `verify --json`."""
        return {"images": self.images, "identical": not self.failures, "first_layer": self.first_layer}


def golden_of(
    program: Program, lowered: onnx.ModelProto, for_cpus: onnx.ModelProto | None = None
) -> tuple[Golden, dict[str, NDArray[np.uint8]]]:
    """What integers say, and the graph it was lowered to.

    Args:
        program: the exact model.
        lowered: its ONNX graph, with taps.
        for_cpus: its graph in the dialect for CPUs, if there is one.

    Returns:
        The record, and the images' outputs by name, uint8 [1, 3, scale*H, scale*W].
    """
    images: list[GoldenImage] = []
    outputs: dict[str, NDArray[np.uint8]] = {}
    for name, image in golden_images().items():
        runs: defaultdict[str, list[str]] = defaultdict(list)

        def watch(step: Step, integers: Integers, _: int, runs: defaultdict[str, list[str]] = runs) -> None:
            if isinstance(step, Quantize):
                runs[step.layer].append(hash_of((integers + step.zero_point).astype(np.uint8)))

        outputs[name] = interpret(program, image, watch)
        codes = _by_run(runs, read_taps(lowered))
        images.append(GoldenImage(name, list(image.shape), hash_of(image), hash_of(outputs[name]), codes))
    graph, cpu_graph = (
        None if proto is None else hashes_by_layer(proto, [tap.layer for tap in read_taps(proto)])
        for proto in (lowered, for_cpus)
    )
    return Golden(graph or {}, images, cpu_graph=cpu_graph), outputs


def _by_run(runs: Mapping[str, list[str]], taps: Iterable[Tap]) -> dict[str, str]:
    """The hash of each run of each layer, by the names that taps have; runs on one input are one run of the graph."""
    wanted = Counter(layer_of_run(tap.layer) for tap in taps)
    return {
        run_name(layer, run): found
        for layer, hashes in runs.items()
        for run, found in enumerate(hashes if len(hashes) == wanted[layer] else dict.fromkeys(hashes))
    }


def check_golden(
    golden: Golden,
    runtime: Runtime,
    lowered: onnx.ModelProto | None,
    open_bytes: Callable[[bytes], Runtime] | None,
) -> GoldenReport:
    """Run the golden images and compare every byte; layer by layer where the runtime opens ONNX files.

    Args:
        golden: the bundle's record.
        runtime: the bundle, opened.
        lowered: the bundle's graph; None where there is none.
        open_bytes: opens a serialized graph on the same runtime; None for engines, whose layers cannot be seen.

    Raises:
        InputError: the runtime takes no images of this size, or the record knows nothing of a layer.
    """
    report = GoldenReport()
    images = golden_images()
    wrong: list[str] = []
    for record in golden.images:
        output = round_to_uint8(runtime.upscale(images[record.name].astype(np.float32)))
        report.images += 1
        if hash_of(output) != record.output:
            wrong.append(record.name)
    if wrong:
        report.failures.append(f"{len(wrong)} of {report.images} golden images come out differently")
    if lowered is None:
        return report
    changed = changed_layers(golden, lowered)
    if changed:
        named = ", ".join(name or "what belongs to no layer" for name in changed[:3])
        report.failures.append(f"model.onnx is not what was written: {named}")
    seen = None if open_bytes is None else _first_difference(golden, lowered, open_bytes)
    if seen is None and wrong and open_bytes is not None:
        # All codes are right, so it is the last layer, or what follows it.
        seen = _layer_before(lowered, lowered.graph.output[0].name)
    if seen is not None:
        report.failures.append(f"the first layer that differs is {seen}")
    report.first_layer = next((name for name in changed if name), seen)
    return report


def verify_golden(bundle: Bundle, runtime: str | None, options: RuntimeOptions) -> tuple[GoldenReport, dict[str, Any]]:
    """Whether a runtime computes on the golden images of an exact bundle what was written down at export.

    By default the one that `Engine` takes: it is what a production machine has to know of.
    Needs no reference model, no images and no torch.

    Returns:
        How it fared, and the runtime's description.

    Raises:
        UsageError: the bundle has no golden outputs.
        InputError, MissingError: as `open_runtime`.
    """
    if bundle.golden is None:
        raise UsageError(
            f"nothing to verify {bundle} with",
            why="it has no golden outputs, which only exact models have",
            fix="add --images DIR",
        )
    with open_runtime(bundle, runtime, options) as opened:
        bundle = bundle.seen_by(opened.name)
        assert bundle.golden is not None
        lowered = None if bundle.onnx_path is None else bundle.graph
        as_opened = partial(type(opened).open_bytes, options=options) if opened.model_kind == "onnx" else None
        report = check_golden(bundle.golden, opened, lowered, as_opened)
        if bundle.is_changed and not report.failures:
            report.failures.append("model.onnx is not the one of the manifest")
        return report, opened.describe()


def changed_layers(golden: Golden, lowered: onnx.ModelProto) -> list[str]:
    """The layers whose part of the graph is not what was written, in network order; "" for what belongs to no layer."""
    found = hashes_by_layer(lowered, [layer for layer in golden.graph if layer])
    return [layer for layer, digest in golden.graph.items() if found[layer] != digest]


def _first_difference(golden: Golden, lowered: onnx.ModelProto, open_bytes: Callable[[bytes], Runtime]) -> str | None:
    """The layer that computes the first codes that differ on any image; None where all are right."""
    watched = onnx.ModelProto()
    watched.CopyFrom(lowered)
    taps = read_taps(lowered)
    # Codes alone: with the convolutions' float results as further outputs, OpenVINO 2026.4 computes wrong codes.
    for name in dict.fromkeys(tap.codes for tap in taps):
        watched.graph.output.append(helper.make_tensor_value_info(name, code_type(lowered, name), None))
    found: dict[str, dict[str, NDArray[Any]]] = {}
    with open_bytes(watched.SerializeToString()) as runtime:
        info = runtime.inputs[0]
        for name, image in golden_images().items():
            found[name] = runtime.run({info.name: info.images.from_rgb(image)})
    for tap in taps:
        for record in golden.images:
            if tap.layer not in record.codes:
                raise InputError("the golden record is damaged", why=f"it holds no codes of {tap.layer}")
            codes = codes_from(tap, found[record.name][tap.codes]).astype(np.uint8)
            if hash_of(codes) != record.codes[tap.layer]:
                return _layer_before(lowered, tap.codes) or tap.layer
    return None


def _layer_before(lowered: onnx.ModelProto, tensor: str) -> str | None:
    """The last convolution, in the order of the graph, that `tensor` depends on directly; None before the first."""
    producers = GraphIndex(lowered.graph).producers
    waiting, reached = [tensor], set[str]()
    while waiting:
        name = waiting.pop()
        if name not in reached and name in producers and producers[name].op_type != "Conv":
            waiting += producers[name].input
        reached.add(name)
    found = [node.name for node in lowered.graph.node if node.op_type == "Conv" and reached.intersection(node.output)]
    return found[-1] if found else None


def hashes_by_layer(lowered: onnx.ModelProto, layers: list[str]) -> dict[str, str]:
    """A hash of each layer's nodes and initializers, and under "" of the graph's inputs, outputs and operator sets.

    Args:
        lowered: a graph whose convolutions, quantizers and their initializers are named after layers.
        layers: dotted names, in network order.

    Returns:
        SHA-256 in hexadecimal, by layer; every node and every initializer that is read belongs to one.
    """
    digests = {layer: hashlib.sha256() for layer in [*layers, ""]}
    for edge in (*lowered.graph.input, *lowered.graph.output, *lowered.opset_import):
        digests[""].update(edge.SerializeToString(deterministic=True))
    owners: dict[str, str] = {}
    for node, layer in _nodes_by_layer(lowered, layers):
        digests[layer].update(node.SerializeToString(deterministic=True))
        for name in node.input:
            owners.setdefault(name, _named(name, layers) or layer)
    for tensor in sorted(lowered.graph.initializer, key=lambda tensor: tensor.name):
        array = numpy_helper.to_array(tensor)
        content = f"{tensor.name} {array.dtype} {array.shape}".encode() + array.tobytes()
        digests[owners.get(tensor.name, "")].update(content)
    return {layer: digest.hexdigest() for layer, digest in digests.items()}


def _nodes_by_layer(lowered: onnx.ModelProto, layers: list[str]) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Every node with its layer: the one it is named after, else the last one before it, else the first of all."""
    position = {layer: index for index, layer in enumerate(["", *layers])}
    makers: dict[str, str] = {}
    for node in lowered.graph.node:
        before = [makers[name] for name in node.input if name in makers]
        layer = _named(node.name, layers) or max(before, key=position.__getitem__, default=layers[0] if layers else "")
        makers.update(dict.fromkeys(node.output, layer))
        yield node, layer


def _named(name: str, layers: list[str]) -> str:
    """The layer that a node or an initializer is named after; "" for none."""
    # The longest match: `body.1` must not take what belongs to `body.1.body.0`.
    return max((layer for layer in layers if f"{name}.".startswith(f"{layer}.")), key=len, default="")
