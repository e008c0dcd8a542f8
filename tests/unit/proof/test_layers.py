"""Teacher-forced comparison: a wrong layer is named, and its neighbours are not blamed."""

from __future__ import annotations

import platform

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.proof.layers import (
    FEW_TIES,
    MAX_FLIP_STEPS,
    MAX_TIE_RATE,
    OUTPUT,
    LayerParity,
    Rounding,
    compare_layers,
    rounding_of,
)
from odm_deploy.proof.ties import PIXELS, TIE_STEPS
from odm_deploy.quantization.exact.sums import sums_are_exact
from tests.factories import OPENERS, exact_model, lowered, model_on_ties, random_images, tiny_model


def replace_constant(proto: onnx.ModelProto, name: str, change) -> None:
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(change(array), name))


def flips(model, proto, opener="onnxruntime"):
    layers = compare_layers(model, proto, OPENERS[opener], [random_images(12, 17), random_images(9, 8, seed=2)])
    return {layer.name: layer.flips for layer in layers}


def test_rates_of_a_layer_without_codes_are_zero():
    assert LayerParity("a").flip_rate == LayerParity("a").floor_flip_rate == 0.0
    assert LayerParity("a", codes=8, flips=2, floor_flips=1).flip_rate == 0.25
    assert LayerParity("a", codes=8, flips=2, floor_flips=1).floor_flip_rate == 0.125


@pytest.mark.parametrize(
    ("codes", "flips", "max_step", "floor_flips", "clean"),
    [
        (10**6, 0, 0, 0, True),
        # 1e-4 of the codes are ties ..
        (10**6, 100, 1, 0, True),
        (10**6, 101, 1, 0, False),
        # .. or ten times what rounding flips in the reference itself, where values sit on ties.
        (10**6, 500, 1, 50, True),
        (10**6, 501, 1, 50, False),
        # A few flips prove nothing among a few codes,
        (300, 3, 1, 0, True),
        (300, 4, 1, 0, False),
        # but no tie moves a code by two.
        (10**6, 1, 2, 0, False),
        (0, 0, 0, 0, True),
    ],
)
def test_a_layer_is_clean_when_ties_explain_its_flips(codes, flips, max_step, floor_flips, clean):
    assert LayerParity("a", codes, flips, max_step, floor_flips).is_clean is clean


def test_flips_on_ties_are_told_from_flips_off_them():
    grid, size = Grid(0.75, 1, 2), 100_000
    values = np.full(size, 0.375, np.float32)
    expected = np.ones(size, np.uint8)
    found = expected.copy()
    found[:5000] = 2
    layer = LayerParity("on a tie")
    layer.add(found, expected, expected, values, grid)
    assert (layer.flips, layer.tie_flips, layer.max_step, layer.furthest_steps) == (5000, 5000, 1, 0.0)
    assert layer.is_clean
    # The same codes for values that are nowhere near a tie, and the code on the wrong side of one.
    for wrong_values, wrong_code, steps in ((np.full(size, 0.3, np.float32), 2, 0.1), (values, 0, 1.0)):
        found[:5000] = wrong_code
        layer = LayerParity("off a tie")
        layer.add(found, expected, expected, wrong_values, grid)
        assert (layer.flips, layer.tie_flips) == (5000, 0)
        assert layer.furthest_steps == pytest.approx(steps, abs=1e-6)
        assert not layer.is_clean


def test_a_flip_far_from_any_tie_is_no_rounding_however_rare():
    assert LayerParity("a", codes=10**6, flips=1, max_step=1, furthest_steps=MAX_FLIP_STEPS).is_clean
    assert not LayerParity("a", codes=10**6, flips=1, max_step=1, furthest_steps=1.01 * MAX_FLIP_STEPS).is_clean


def test_ties_excuse_no_flip_of_an_exact_model():
    assert not LayerParity("a", codes=10**6, flips=1, max_step=1, tie_flips=1, exact=True).is_clean


def test_noise_is_what_flips_as_many_codes():
    layers = [LayerParity("a", codes=10**6, flips=90, max_step=1), LayerParity("b", codes=3 * 10**6, flips=30)]
    rounding = rounding_of([*layers, LayerParity(OUTPUT, codes=10**6, flips=10**5)])
    assert rounding.noise_steps == pytest.approx(6e-5)
    assert rounding.tie_share == 1.0
    values = np.random.default_rng(0).uniform(0, 15, 10**7)
    moved = values + np.random.default_rng(1).uniform(-1e-4, 1e-4, values.size)
    flips = int(np.sum(np.rint(values) != np.rint(moved)))
    assert rounding_of([LayerParity("c", 10**7, flips)]).noise_steps == pytest.approx(1e-4, rel=0.1)


def test_noise_is_what_a_runtime_is_known_for_and_no_more_than_clean_layers_flip():
    quiet = [LayerParity("a", codes=10**6)]
    assert rounding_of(quiet) == Rounding(0.0, 1.0)
    assert rounding_of(quiet, TIE_STEPS) == Rounding(TIE_STEPS, 1.0)
    assert rounding_of([LayerParity("a", codes=100, flips=100)], TIE_STEPS).noise_steps == 2 * MAX_TIE_RATE
    # Nothing is known about how a runtime rounds this model where no layer was compared.
    assert rounding_of([], TIE_STEPS) == Rounding()


def test_as_many_ties_move_as_flip_what_flipped_on_them():
    layers = [LayerParity("a", 10**6, 90, 1, tie_flips=90, ties=1000), LayerParity("b", 10**6, 7, 1, tie_flips=7)]
    assert rounding_of(layers).tie_share == pytest.approx(2 * (97 + FEW_TIES) / 1000)
    assert rounding_of([LayerParity("a", 10**6, 90, 1, tie_flips=90, ties=100)]).tie_share == 1.0


def test_every_layer_is_compared_on_every_code():
    model = exact_model()
    layers = compare_layers(model, lowered(model), OPENERS["onnxruntime"], [random_images(12, 17)])
    assert [layer.name for layer in layers] == [*model.layers, OUTPUT]
    by_name = {layer.name: layer.codes for layer in layers}
    assert by_name["head.0"] == 3 * 12 * 17
    assert by_name["body.0.body.0"] == 8 * 12 * 17
    assert by_name["tail.1"] == 8 * 24 * 34
    assert by_name[OUTPUT] == 3 * 24 * 34


@pytest.mark.parametrize("opener", ["onnxruntime", "openvino"])
def test_wrong_weights_of_one_layer_flip_the_codes_behind_it_and_no_others(opener):
    model = exact_model(8)
    proto = lowered(model)
    replace_constant(proto, "body.1.body.0.codes", lambda codes: np.where(codes > 0, codes // 2, codes))
    found = flips(model, proto, opener)
    assert found.pop("body.1.body.2") > 100
    assert set(found.values()) == {0}


def test_wrong_scale_of_one_layers_input_is_blamed_on_that_layer():
    model = exact_model(8)
    proto = lowered(model)
    replace_constant(proto, "body.1.body.2.scale_x", lambda scale: scale * np.float32(1.5))
    found = flips(model, proto)
    # Its codes are wrong, and so is what it computes from the right ones.
    blamed = [name for name, count in found.items() if count]
    assert blamed == ["body.1.body.2", "body.2"]


def test_one_planted_code_is_seen_where_it_matters():
    model = exact_model(8)
    proto = lowered(model)

    def plant(codes):
        codes[3, 0, 1, 1] = -codes[3, 0, 1, 1] + 40
        return codes

    replace_constant(proto, "body.0.body.0.codes", plant)
    found = flips(model, proto)
    assert found["body.0.body.2"] > 0
    assert sum(count > 0 for count in found.values()) == 1


def test_floor_counts_what_float32_rounds_differently_from_float64():
    exact = compare_layers(exact_model(), lowered(exact_model()), OPENERS["onnxruntime"], [random_images(8, 8)])
    assert sum(layer.floor_flips for layer in exact) == 0
    model = tiny_model(8)
    ordinary = compare_layers(model, lowered(model), OPENERS["onnxruntime"], [random_images(40, 60)])
    assert 0 <= sum(layer.floor_flips for layer in ordinary) < 1e-4 * sum(layer.codes for layer in ordinary)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other kernels break other ties")
def test_openvino_flips_ties_by_the_dozen_and_still_computes_the_model():
    assert sums_are_exact(model_on_ties())
    layers = compare_layers(model_on_ties(), lowered(model_on_ties()), OPENERS["openvino"], [random_images(24, 32)])
    worst = max(layers, key=lambda layer: layer.flip_rate)
    # Far more than rounding flips where values lie anywhere, and the floor knows nothing of it: exact sums stay exact.
    assert worst.flip_rate > 10 * MAX_TIE_RATE
    assert (worst.floor_flips, worst.max_step, worst.tie_flips) == (0, 1, worst.flips)
    assert all(layer.is_clean for layer in layers)


@pytest.mark.parametrize("opener", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("layer", ["body.0.body.0", "body.0.body.2", "body.1.body.0"])
def test_ties_hide_no_wrong_weight_code(opener, layer):
    proto = lowered(model_on_ties())

    def plant(codes):
        codes[5, 2, 1, 1] += 1 if codes[5, 2, 1, 1] <= 0 else -1
        return codes

    replace_constant(proto, f"{layer}.codes", plant)
    layers = compare_layers(model_on_ties(), proto, OPENERS[opener], [random_images(24, 32)])
    follower = {"body.0.body.0": "body.0.body.2", "body.0.body.2": "body.1.body.0", "body.1.body.0": "body.1.body.2"}
    assert [each.name for each in layers if not each.is_clean] == [follower[layer]]


def test_reference_is_left_without_taps():
    model = exact_model()
    compare_layers(model, lowered(model), OPENERS["onnxruntime"], [random_images(8, 8)])
    assert all(layer.tap is None for layer in model.layers.values())


def test_graph_of_somebody_else_is_refused():
    proto = lowered(tiny_model())
    del proto.metadata_props[:]
    with pytest.raises(InputError, match="does not say where its quantizers are"):
        compare_layers(tiny_model(), proto, OPENERS["onnxruntime"], [random_images(8, 8)])


def test_codes_of_another_shape_are_refused():
    codes = np.zeros((1, 2, 3, 3), np.uint8)
    with pytest.raises(InputError, match=r"codes of conv cannot be compared.*\(1, 3, 3, 3\)"):
        LayerParity("conv").add(np.zeros((1, 3, 3, 3), np.uint8), codes, codes, codes.astype(np.float32), PIXELS)
