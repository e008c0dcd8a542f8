"""What limits int8, counted by hand on a graph small enough for it."""

from __future__ import annotations

import pytest
import torch

from odm_deploy.bench.limits import find_limits
from odm_deploy.building.layer_table import LayerRecord
from odm_deploy.lowering.lower import lower
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from tests.factories import random_images, tiny_network
from tests.sr_graphs import SCALE, WIDTH, sr_model

SHAPE = (1, 3, 10, 20)
# 3x3 convolutions at input size: 3 -> 8 in float, 8 -> 8 and 8 -> 3 * 2 * 2 quantized.
HEAD, BODY, TAIL = (10 * 20 * 9 * c_in * c_out for c_in, c_out in ((3, WIDTH), (WIDTH, WIDTH), (WIDTH, 3 * SCALE**2)))


def record(name: str, kind: str, precision: str) -> LayerRecord:
    return LayerRecord(name, kind, precision, (name,))


def names() -> tuple[str, str]:
    body, tail = (node.name for node in sr_model().graph.node if node.op_type == "Conv" and "head" not in node.name)
    return body, tail


def test_the_graph_alone_tells_what_is_quantized_and_padded() -> None:
    limits = find_limits(sr_model(), (), SHAPE)
    assert limits.int8_mac_share == pytest.approx((BODY + TAIL) / (HEAD + BODY + TAIL))
    assert limits.best_speedup == pytest.approx((HEAD + BODY + TAIL) / HEAD)
    # 8 and 12 channels are computed as 32.
    padded = BODY * (32 / 8) ** 2 + TAIL * (32 / 8) * (32 / 12)
    assert limits.padding_share == pytest.approx(1 - (BODY + TAIL) / padded)
    assert (limits.compute_kernels, limits.other_kernels, limits.fallbacks) == (0, 0, ())
    said = " | ".join(limits.sentences())
    assert "multiples of 32" in said
    assert f"{limits.best_speedup:.2g}x" in said
    assert "kernels beside" not in said


def test_the_engine_tells_what_really_runs() -> None:
    body, tail = names()
    layers = [
        record(body, "correlation", "int8"),
        record(tail, "correlation", "fp32"),
        record("scaling", "kgen", "fp32"),
        record("memory", "allocate", "fp32"),
    ]
    limits = find_limits(sr_model(), layers, SHAPE)
    assert limits.int8_mac_share == pytest.approx(BODY / (HEAD + BODY + TAIL))
    assert limits.fallbacks == (tail,)
    assert (limits.compute_kernels, limits.other_kernels) == (2, 1)
    first, *others = limits.sentences()
    assert first.startswith(f"1 quantized layer runs in float ({tail})")
    assert any(
        sentence.startswith("1 kernel beside 2 convolutions and products only scales, rounds and moves ")
        for sentence in others
    )


@pytest.mark.parametrize("symmetric", [False, True])
def test_grids_that_engines_cannot_pad_are_named_with_the_remedy(symmetric: bool) -> None:
    images = [torch.from_numpy(random_images(20, 24))]
    policy = QuantizationPolicy.deploy(LayerBits(8, 8), symmetric=symmetric)
    settings = CalibrationSettings(equalize=False, adaptive_rounding=False, correct_bias=False)
    model, _ = calibrate(tiny_network(), images, policy, settings)
    limits = find_limits(lower(model), [record(name, "correlation", "int8") for name in model.layers], SHAPE)
    said = [sentence for sentence in limits.sentences() if "--symmetric" in sentence]
    if symmetric:
        assert not said
    else:
        (sentence,) = said
        assert int(sentence.split()[0]) == sum(not layer.grid.is_symmetric for layer in model.layers.values()) > 0


def test_every_layer_that_gains_little_comes_with_its_reason() -> None:
    body, tail = names()
    head = next(node.name for node in sr_model().graph.node if node.op_type == "Conv" and "head" in node.name)
    engine = [record(body, "correlation", "int8"), record(tail, "correlation", "fp16"), record(head, "x", "fp16")]
    known = {layer.name: layer for layer in find_limits(sr_model(), engine, SHAPE).layers}
    assert {name: layer.runs_as for name, layer in known.items()} == {body: "int8", tail: "fp16", head: "fp16"}
    # 8 -> 8 channels computed as 32 -> 32: fifteen sixteenths are padding.
    assert known[body].reason.startswith("94% of what it computes is on channels padded")
    assert "the builder chose" in known[tail].reason
    assert known[head].reason == "float in this model"
    assert sum(layer.mac_share for layer in known.values()) == pytest.approx(1.0)
    assert list(known) == sorted(known, key=lambda name: -known[name].mac_share)
    unknown = {layer.name: layer for layer in find_limits(sr_model(), (), SHAPE).layers}
    assert {layer.runs_as for layer in unknown.values()} == {"unknown"}
    assert unknown[tail].reason.startswith("91% of what it computes is on channels padded")


def test_without_a_float_rest_there_is_no_bound() -> None:
    limits = find_limits(sr_model("float"), (), SHAPE)
    assert (limits.int8_mac_share, limits.padding_share, limits.best_speedup) == (0.0, 0.0, 1.0)
