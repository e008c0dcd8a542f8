"""Teacher-forced comparison: a wrong layer is named, and its neighbours are not blamed."""

from __future__ import annotations

import json
import platform

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from odm_deploy.errors import InputError
from odm_deploy.proof.layer_parity import MAX_TIE_RATE, OUTPUT
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.exact.sums import sums_are_exact
from tests.factories import (
    OPENERS,
    exact_model,
    lowered,
    model_on_ties,
    quantized,
    random_images,
    tiny_model,
    tiny_network,
)


def replace_constant(proto: onnx.ModelProto, name: str, change) -> None:
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(change(array), name))


def flips(model, proto, opener="onnxruntime"):
    layers = compare_layers(model, proto, OPENERS[opener], [random_images(12, 17), random_images(9, 8, seed=2)])
    return {layer.name: layer.flips for layer in layers}


def test_every_layer_is_compared_on_every_code():
    model = exact_model()
    layers = compare_layers(model, lowered(model), OPENERS["onnxruntime"], [random_images(12, 17)])
    assert [layer.name for layer in layers] == [*model.layers, OUTPUT]
    by_name = {layer.name: layer.codes for layer in layers}
    # The one image is taken twice: as it is, and with every quantizer's values in random order.
    # The border that a shifted grid pads with is compared, too.
    assert by_name["head.0"] == 2 * 3 * (12 + 2) * (17 + 2)
    assert by_name["body.0.body.0"] == 2 * 8 * 12 * 17
    assert by_name["tail.1"] == 2 * 8 * (24 + 2) * (34 + 2)
    assert by_name[OUTPUT] == 2 * 3 * 24 * 34


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


@pytest.mark.parametrize("bits", [4, 8])
def test_no_single_weight_code_hides_from_a_small_flat_image(bits):
    """On such an image most channels are zero, or the same everywhere: in random order, their values are not."""
    model, image = tiny_model(bits), np.full((1, 3, 12, 16), 7.0, np.float32)
    random, unseen = np.random.default_rng(bits), list[str]()
    layers = ("body.0.body.0", "body.0.body.2", "body.1.body.0")
    for layer in layers * 4:

        def plant(codes):
            index = random.integers(codes.size)
            codes.flat[index] += 1 if codes.flat[index] <= 0 else -1
            return codes

        proto = lowered(model)
        replace_constant(proto, f"{layer}.codes", plant)
        if all(each.is_clean for each in compare_layers(model, proto, OPENERS["onnxruntime"], [image])):
            unseen.append(layer)
    assert unseen == []


def test_reference_is_left_without_taps():
    model = exact_model()
    compare_layers(model, lowered(model), OPENERS["onnxruntime"], [random_images(8, 8)])
    assert all(layer.tap is None for layer in model.layers.values())


def test_graph_of_somebody_else_is_refused():
    proto = lowered(tiny_model())
    del proto.metadata_props[:]
    with pytest.raises(InputError, match="does not say where its quantizers are"):
        compare_layers(tiny_model(), proto, OPENERS["onnxruntime"], [random_images(8, 8)])


@pytest.mark.parametrize("opener", ["onnxruntime", "openvino"])
def test_a_fault_between_layers_that_saturates_in_the_codes_is_seen_in_float(opener):
    """A channel of the head far below its grid: the quantizer behind it gives code 0 whatever the channel's value."""
    network = tiny_network()
    head = network.get_submodule("head.0")
    with torch.no_grad():
        head.bias[3] = -1e4
    choose = lambda _, name: (4, "post_relu", "per_channel") if name.startswith("body") else None  # noqa: E731
    model = quantized(network, choose)
    sound = compare_layers(model, lowered(model), OPENERS[opener], [random_images(24, 32)])
    assert all(layer.is_clean for layer in sound)
    assert sum(layer.floats for layer in sound) > 0

    faulty = lowered(model)

    def lower_still(bias):
        bias[3] -= 100.0
        return bias

    replace_constant(faulty, "head.0.bias", lower_still)
    layers = compare_layers(model, faulty, OPENERS[opener], [random_images(24, 32)])
    # No code differs, and yet the sum behind the body would be wrong by 100.
    assert [layer.name for layer in layers if layer.flips] == []
    assert [layer.name for layer in layers if not layer.is_clean] == ["body.0.body.0"]


def test_a_wrong_padding_value_hides_in_no_border():
    model = quantized(tiny_network(), lambda *_: (8, "asymmetric", "per_channel"))
    faulty = lowered(model)
    pad = next(node for node in faulty.graph.node if node.op_type == "Pad" and "body.1.body.0" in node.name)
    faulty.graph.initializer.append(numpy_helper.from_array(np.float32(3.0), "three"))
    pad.input.append("three")
    layers = compare_layers(model, faulty, OPENERS["onnxruntime"], [random_images(24, 32)])
    assert [layer.name for layer in layers if not layer.is_clean] == ["body.1.body.0"]


@pytest.mark.parametrize("edit", [lambda taps: taps[1:], lambda taps: [*taps, {**taps[0], "layer": "nobody"}]])
def test_a_graph_that_hides_a_quantizer_or_names_one_that_is_none_is_refused(edit):
    proto = lowered(tiny_model())
    entry = next(entry for entry in proto.metadata_props if entry.key == "odm.taps")
    entry.value = json.dumps(edit(json.loads(entry.value)))
    with pytest.raises(InputError, match="cannot check this graph layer by layer"):
        compare_layers(tiny_model(), proto, OPENERS["onnxruntime"], [random_images(8, 8)])


@pytest.mark.parametrize(("key", "value"), [("code_offset", {}), ("padding", -1), ("layer", 3), ("block", "2")])
def test_a_tap_of_other_kinds_of_values_is_refused(key, value):
    proto = lowered(tiny_model())
    entry = next(entry for entry in proto.metadata_props if entry.key == "odm.taps")
    taps = json.loads(entry.value)
    taps[0][key] = value
    entry.value = json.dumps(taps)
    with pytest.raises(InputError, match=f"metadata is damaged.*{key} is"):
        compare_layers(tiny_model(), proto, OPENERS["onnxruntime"], [random_images(8, 8)])
