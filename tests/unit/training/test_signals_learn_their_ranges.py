"""Training under profile integer: signals learn, layers that read one share its range, and what is frozen agrees."""

import pytest
import torch
import torch.nn.functional as F

from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.exact.freeze import bias_unit
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.power_of_two import round_to_multiples
from tests.factories import OPENERS, lowered
from training.methods.registry import build_method
from training.model import TrainableModel


def trained(network, low, bits: str, name: str, steps: int = 3) -> TrainableModel:
    policy = QuantizationPolicy.parse("integer", bits)
    method = build_method({"name": name})
    model = TrainableModel.attach(network, policy.select(network), method, signals=policy.signals)
    model.calibrate(iter([low]))
    method.initialize(model)
    model.project()
    optimizer = torch.optim.Adam(model.parameters().values(), lr=1e-2)
    target = F.interpolate(low, scale_factor=2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.l1_loss(model(low), target).backward()
        optimizer.step()
        model.project()
    return model


@pytest.mark.parametrize(("name", "bits"), [("odm_v2", "8"), ("odm_v2", "4"), ("lsq", "8")])
def test_what_is_frozen_computes_what_was_trained(small_network, low, name, bits):
    model = trained(small_network, low, bits, name)
    frozen = model.freeze({})
    assert list(frozen.signals) == list(model.signals)
    model.network.eval()
    with torch.no_grad():
        for layer_name, layer in model.layers.items():
            # Freezing rounds biases to the units of sums, by up to half of one.
            unit = bias_unit(frozen.layers[layer_name])
            assert ((layer.bias - frozen.layers[layer_name].bias).abs() <= 0.5001 * unit).all()
            layer.bias.copy_(frozen.layers[layer_name].bias)
        apart = (model(low).clamp(0, 255) - frozen(low).clamp(0, 255)).abs()
    # The last signal is the image: what is left are codes that fell on the other side of a tie.
    assert (apart > 0.5).float().mean() < 0.02


def test_every_range_between_layers_learns_but_for_the_images_own(small_network, low):
    before = trained(small_network, low, "8", "odm_v2", steps=0).freeze({}).grids
    model = trained(small_network, low, "8", "odm_v2")
    after = model.freeze({}).grids
    assert after["tail.1.output"] == before["tail.1.output"] == small_network.output_grid
    moved = [name for name in model.signals if name != "tail.1.output"]
    assert all(after[name] != before[name] for name in moved)
    assert {f"{name}.range.upper" for name in moved} <= model.quantizer_parameters().keys()


def test_a_layer_that_reads_one_signal_has_its_grid(small_network, low):
    grids = trained(small_network, low, "8", "odm_v2").freeze({}).grids
    assert grids["body.0.body.0"] == grids["head.0.output"]
    assert grids["body.1.body.0"] == grids["body.0.sum.output"]
    narrow = trained(small_network, low, "4", "odm_v2").freeze({}).grids
    assert (narrow["body.0.body.0"].bits, narrow["head.0.output"].bits) == (4, 8)


@pytest.mark.parametrize("name", ["odm_v2", "lsq"])
def test_learned_biases_lie_where_fusing_runtimes_round_them_to(small_network, low, name):
    frozen = trained(small_network, low, "8", name, steps=5).freeze({})
    for layer_name, layer in frozen.layers.items():
        assert layer.bias is not None, layer_name
        assert torch.equal(layer.bias, round_to_multiples(layer.bias, bias_unit(layer))), layer_name
    proto = lowered(frozen, target="cpu")
    for opener in ("onnxruntime", "openvino"):
        layers = compare_layers(frozen, proto, OPENERS[opener], [low[:1].numpy()])
        assert [(opener, layer.name) for layer in layers if not layer.is_clean] == []
