"""Models whose tensors between layers lie on grids compute the same on runtimes as in torch."""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch

from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.lowering.lower import lower
from odm_deploy.lowering.metadata import read_taps
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.networks.registry import build_network
from odm_deploy.networks.trusted_builders import trusting
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.quantization.signal_plan import plan_signals
from odm_deploy.runtimes.onnx.onnx_runtime import OnnxRuntime
from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu
from tests.factories import lowered as lowered_once
from tests.factories import random_images, tiny_network
from tests.foreign_networks import DenseBlocks
from tests.public_networks import RLFN

QUICK = CalibrationSettings(equalize=False, output_ranges=False, adaptive_rounding=False, correct_bias=False)


def model_of(network, profile: str, bits: str, signals: int = 8):
    policy = dataclasses.replace(QuantizationPolicy.parse(profile, bits), signals=signals)
    images = [torch.from_numpy(random_images(24, 20, seed=seed)) for seed in range(3)]
    return calibrate(network, images, policy, QUICK)[0]


@pytest.mark.parametrize("runtime", [OnnxRuntime, OpenVinoCpu])
def test_with_dyadic_scales_every_bit_agrees(runtime):
    model = model_of(tiny_network(), "exact", "8")
    assert model.exact is not None
    image = random_images(17, 23, seed=5)
    with runtime.open_bytes(lower(model).SerializeToString()) as opened:
        (found,) = opened.run({"input": image}).values()
    np.testing.assert_array_equal(found, model(torch.from_numpy(image)).numpy())


@pytest.mark.parametrize("bits", ["8", "4"])
def test_teacher_forced_every_signal_agrees_but_for_ties(bits):
    network = build_network("srresnet", {"scale": 2, "features": 8, "blocks": 2}).eval()
    model = model_of(network, "integer", bits)
    lowered = lower(model)
    compared = compare_layers(model, lowered, OnnxRuntime.open_bytes, [random_images(16, 24, seed=6)])
    by_name = {layer.name: layer for layer in compared}
    assert set(model.grids) <= set(by_name)
    assert all(layer.flip_rate < 1e-3 for layer in by_name.values())


def residual_network(name: str):
    torch.manual_seed(5)
    module = DenseBlocks() if name == "dense" else RLFN(8, blocks=2, scale=2)
    builder, arguments = "tests.foreign_networks:DenseBlocks", {}
    if name != "dense":
        builder, arguments = "tests.public_networks:RLFN", {"features": 8, "blocks": 2, "scale": 2}
    return foreign_network(module, builder=builder, arguments=arguments, input_range=255.0)


@functools.cache
def residual_model(name: str):
    return model_of(residual_network(name), "integer", "8")


PLACES = {
    # What one layer alone reads lies on that layer's grid.
    "dense": {"add", "add_1", "add_2", "mul", "mul_1", "leaky_relu", "leaky_relu_1"},
    "rlfn": {"block_1.leaky_relu_2", "block_2.leaky_relu_2", "block_1.esa.mul"},
}


@pytest.mark.parametrize("name", PLACES)
def test_sums_in_other_peoples_code_lie_on_grids_that_every_form_of_the_model_has(name, tmp_path):
    network = residual_network(name)
    plan = plan_signals(network, QuantizationPolicy.parse("integer", "8").select(network).keys())
    # What attention adds to a resized map stays float.
    assert all(".esa." in left for left in plan.left)
    model = model_of(network, "integer", "8")
    modules = dict(network.named_modules())
    owners = {name.removesuffix(".output") for name in model.signals}
    assert owners - set(modules) == {f"net.{place}" for place in PLACES[name]}
    image = torch.from_numpy(random_images(26, 30, seed=6))
    save_model(model, tmp_path / "model.pt")
    with trusting(network.config.builder):
        loaded = load_model(tmp_path / "model.pt")
    assert loaded.grids == model.grids
    assert torch.equal(loaded(image), model(image))
    assert torch.equal(copy.deepcopy(model.network)(image), model(image))


@pytest.mark.parametrize("runtime", [OnnxRuntime, OpenVinoCpu])
@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize("name", PLACES)
def test_teacher_forced_sums_in_other_peoples_code_agree_but_for_ties(name, target, runtime):
    model = residual_model(name)
    lowered = lowered_once(model, target=target)
    compared = compare_layers(model, lowered, runtime.open_bytes, [random_images(26, 30, seed=6)])
    # A constant factor is in the scales of the convolution before it.
    factors = [node for node in lowered.graph.node if node.op_type == "Mul" and node.name.startswith("node_mul")]
    assert target != "cpu" or name != "dense" or not factors
    names = {layer.name for layer in compared} | {tap.layer for tap in read_taps(lowered)}
    assert set(model.grids) <= names
    assert [layer.name for layer in compared if not layer.is_clean] == []
