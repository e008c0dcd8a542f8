"""Golden outputs: what an exact model computes on fixed images, recorded at export and compared by whoever runs it.

Integers decide (`interpret`), not a float engine. Whoever runs the bundle, on whatever machine, must get these bytes;
`verify` demands it, and where they differ it names the first layer that computes something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from odm_deploy.bundle.golden import Golden, GoldenImage, golden_images, hash_of
from odm_deploy.imaging.pixels import round_to_uint8
from odm_deploy.lowering.taps import read_taps
from odm_deploy.proof.graph_hashes import hashes_by_layer
from odm_deploy.proof.teacher_forcing import codes_from
from odm_deploy.quantization.exact.interpreter import interpret
from odm_deploy.quantization.exact.program import Integers, Program, Quantize, Step
from odm_deploy.runtimes.base import Runtime


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


def golden_of(program: Program, lowered: onnx.ModelProto) -> tuple[Golden, dict[str, NDArray[np.uint8]]]:
    """What integers say, and the graph it was lowered to.

    Args:
        program: the exact model.
        lowered: its ONNX graph, with taps.

    Returns:
        The record, and the images' outputs by name, uint8 [1, 3, scale*H, scale*W].
    """
    images: list[GoldenImage] = []
    outputs: dict[str, NDArray[np.uint8]] = {}
    for name, image in golden_images().items():
        codes: dict[str, str] = {}

        def watch(step: Step, integers: Integers, _: int, codes: dict[str, str] = codes) -> None:
            if isinstance(step, Quantize):
                codes[step.layer] = hash_of((integers + step.zero_point).astype(np.uint8))

        outputs[name] = interpret(program, image, watch)
        images.append(GoldenImage(name, list(image.shape), hash_of(image), hash_of(outputs[name]), codes))
    return Golden(hashes_by_layer(lowered, [tap.layer for tap in read_taps(lowered)]), images), outputs


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
        InputError: the runtime takes no images of this size.
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
    for tap in taps:
        watched.graph.output.append(helper.make_tensor_value_info(tap.codes, onnx.TensorProto.INT8, None))
    found: dict[str, dict[str, NDArray[Any]]] = {}
    with open_bytes(watched.SerializeToString()) as runtime:
        info = runtime.inputs[0]
        for name, image in golden_images().items():
            found[name] = runtime.run({info.name: info.images.from_rgb(image)})
    for tap in taps:
        for record in golden.images:
            codes = codes_from(tap, found[record.name][tap.codes]).astype(np.uint8)
            if hash_of(codes) != record.codes[tap.layer]:
                return _layer_before(lowered, tap.codes) or tap.layer
    return None


def _layer_before(lowered: onnx.ModelProto, tensor: str) -> str | None:
    """The last convolution, in the order of the graph, that `tensor` depends on directly; None before the first."""
    producer = {name: index for index, node in enumerate(lowered.graph.node) for name in node.output}
    convolutions: set[int] = set()
    waiting = [tensor]
    while waiting:
        index = producer.pop(waiting.pop(), None)
        if index is None:
            continue
        if lowered.graph.node[index].op_type == "Conv":
            convolutions.add(index)
        else:
            waiting += lowered.graph.node[index].input
    return lowered.graph.node[max(convolutions)].name if convolutions else None
