"""DDTB with its gates: trained, frozen, exported with a step computed from each image, and proven by `verify`."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from odm_deploy import VerifyOptions, verify
from odm_deploy.accounting import account
from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.errors import InputError, UsageError
from odm_deploy.export import write_bundle
from odm_deploy.lowering.lower import LoweringOptions, lower
from odm_deploy.lowering.receptive_field import receptive_radius_px
from odm_deploy.networks.registry import build_network
from odm_deploy.proof.parity_report import Gates
from odm_deploy.quantization.gates import FrozenGate
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from training.methods.registry import build_method
from training.model import TrainableModel

SIZES = {
    "edsr": {"features": 8, "blocks": 2},
    "swinir": {"channels": 8, "groups": 1, "depth": 2, "heads": 2, "window": 4, "hidden": 12},
}


def gated_model(network: str, bits: int = 2) -> TrainableModel:
    """A small network whose every layer has a gate that says something else for every image."""
    torch.manual_seed(5)
    method = build_method({"name": "ddtb", "gate_share": 1.0, "gate_start": 0})
    policy = QuantizationPolicy(body=LayerBits(bits, bits))
    small = build_network(network, {"scale": 2, **SIZES[network]})
    model = TrainableModel.attach(small, policy.select(small), method)
    model.calibrate(iter([images(4)]))
    method.initialize(model)
    method.begin_iteration(model, 0)
    for _ in range(60):
        model(images(4))  # running statistics of the gates' normalisation
    model.network.eval()
    return model


def images(count: int) -> torch.Tensor:
    """float32 [count, 3, 24, 32] in 0..255, each brighter than the one before."""
    noise = torch.rand(count, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    return noise * torch.linspace(40, 255, count).reshape(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def gated() -> TrainableModel:
    return gated_model("edsr")


@pytest.mark.parametrize(("network", "bits"), [("edsr", 2), ("edsr", 4), ("swinir", 3)])
def test_the_frozen_model_is_the_trained_one_image_by_image(network, bits, tmp_path):
    model = gated_model(network, bits)
    save_model(model.freeze({}), tmp_path / "model.pt")
    frozen = load_model(tmp_path / "model.pt")
    assert all(layer.gate for layer in frozen.layers.values())
    for image in images(3).split(1):
        with torch.no_grad():
            trained = model(image)
        torch.testing.assert_close(frozen(image), trained, atol=2e-2, rtol=1e-4)
    # And a batch is its images, which a gate in training, whose own quantizers see the batch, does not promise.
    alone = torch.cat([frozen(image) for image in images(3).split(1)])
    torch.testing.assert_close(frozen(images(3)), alone, atol=2e-2, rtol=1e-4)


def test_a_layers_step_differs_between_images_and_keeps_its_codes(gated):
    layer = next(iter(gated.freeze({}).layers.values()))
    assert layer.gate is not None
    steps, step = layer.gate(torch.randn(3, 8, 6, 6, generator=torch.Generator().manual_seed(2)) * 40)
    assert step.shape == (3, 1, 1, 1)
    assert len(step.unique()) == 3
    codes = torch.round(steps)
    for image in codes:
        # Four neighbouring whole numbers with zero among them.
        assert image.max() - image.min() <= 3
        assert image.min() <= 0 <= image.max()


def test_the_round_trip_of_a_gate_is_exact(gated, tmp_path):
    frozen = gated.freeze({})
    save_model(frozen, tmp_path / "model.pt")
    assert torch.equal(load_model(tmp_path / "model.pt")(images(2)), frozen(images(2)))


@pytest.fixture(scope="module")
def gated_bundle(gated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gated")
    save_model(gated.freeze({}), folder / "model.pt")
    model = load_model(folder / "model.pt")
    write_bundle(model, folder / "model.pt", folder / "bundle", LoweringOptions(), None, lambda _: None)
    return folder / "bundle"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_verify_accepts_the_bundle(gated, gated_bundle, runtime, tiny_set):
    model = gated.freeze({})
    report = verify(gated_bundle, tiny_set / "LR_bicubic/X2", VerifyOptions(runtime=runtime))
    assert report.failures(Gates()) == []
    assert {layer.name for layer in report.layers} >= set(model.layers)


def test_engines_compute_gated_layers_on_integers(gated):
    graph = lower(gated.freeze({}))
    quantizers = [node for node in graph.graph.node if node.op_type == "QuantizeLinear"]
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    assert [float(stored[node.input[1]]) for node in quantizers] == [1.0] * 4
    # The gates look at the whole image, so tiles would be another function.
    assert receptive_radius_px(graph) is None
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": images(2).numpy()})
    apart = np.abs(output - gated.freeze({})(images(2)).numpy())
    assert np.median(apart) < 1e-3


def test_accounting_counts_a_gate_and_the_codes_of_one_image(gated, tmp_path):
    frozen = gated.freeze({})
    save_model(frozen, tmp_path / "model.pt")
    for name, stored in torch.load(tmp_path / "model.pt", weights_only=True)["layers"].items():
        tensors = [stored["bias"], stored["weight"]["packed"], stored["weight"]["scale"]]
        gate = stored["gate"]
        tensors += [gate["squeeze"]["packed"], gate["excite"]["packed"], gate["gain"], gate["shift"]]
        floats = len(("grid scale", "zero point", "gate scale", "lower", "upper"))
        bytes_held = sum(value.numel() * value.element_size() for value in tensors) + 4 * floats
        (cost,) = [layer for layer in account(frozen, output_px=(48, 64)).layers if layer.name == name]
        assert cost.storage_bits == 8 * bytes_held
        assert (cost.weight_bits, cost.activation_bits) == (2, 2)


def test_half_precision_and_damaged_gates_are_refused(gated):
    frozen = gated.freeze({})
    with pytest.raises(UsageError, match="fp16 of a model with gates"):
        lower(frozen, LoweringOptions(precision="fp16"))
    gate = next(iter(frozen.layers.values())).gate.frozen
    for damage in ({"upper": float("nan")}, {"gain": gate.gain[:3]}, {"lower": 1.0}, {"bits": 8}):
        with pytest.raises(InputError, match="a gate is unusable"):
            dataclasses.replace(gate, **damage)
    stored = gate.to_dict()
    stored["squeeze"]["packed"].fill_(255)
    for damaged in (stored, {"bits": 2}, {**gate.to_dict(), "scale": 1}, {**gate.to_dict(), "gain": [1.0]}):
        with pytest.raises(InputError, match="not a gate"):
            FrozenGate.from_dict(damaged)
