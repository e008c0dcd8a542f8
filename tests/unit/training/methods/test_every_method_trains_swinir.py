"""Every method trains a network of linear layers, and freezes to the same bits where it freezes at all."""

import numpy as np
import onnxruntime
import pytest
import torch

from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.lowering.lower import lower
from odm_deploy.networks.swinir import SwinIR, SwinirConfig
from odm_deploy.quantization.policy import QuantizationPolicy
from training.distributed import World
from training.loop.step import GradientStep, build_optimizer, follow
from training.methods.registry import build_method, method_names
from training.model import TrainableModel
from training.recipe import OptimizerSection

PHASES = {"ddtb": {"gate_start": 1, "remove_gates": True}, "pams": {"first_epoch": 1}}


@pytest.fixture
def low() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 255


def trained(name, low):
    """A tiny SwinIR after three steps."""
    torch.manual_seed(1)
    network = SwinIR(SwinirConfig(scale=2, channels=8, groups=1, depth=2, heads=2, window=4, hidden=12)).eval()
    method = build_method({"name": name, **PHASES.get(name, {})})
    widths = QuantizationPolicy.parse("paper", "w3a3").select(network)
    assert any("attn.qkv" in layer for layer in widths)
    model = TrainableModel.attach(network, widths, method)
    model.calibrate(iter([low]))
    method.initialize(model)
    model.project()
    method.watch(model, network)
    optimizer = build_optimizer(model, OptimizerSection(range_learning_rate=1e-2), method.at_weights_rate)
    step = GradientStep(model, method, World(), autocast=False)
    high = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 255
    for iteration in range(3):
        result = step(low, high, iteration)
        assert all(bool(torch.isfinite(value).all()) for value in result.combined.values())
        follow(model, optimizer, result.combined)
    method.simplify(model)
    return method, model


@pytest.mark.parametrize("name", sorted(set(method_names()) - {"float"}))
def test_swinir_trains_and_freezes(low, tmp_path, name):
    method, model = trained(name, low)
    if method.why_not_exportable():
        assert name == "daq"
        return
    model.network.eval()
    with torch.no_grad():
        expected = model(low)
    save_model(model.freeze({}), tmp_path / "model.pt")
    assert torch.equal(load_model(tmp_path / "model.pt")(low), expected)


@pytest.mark.parametrize("name", ["odm_v1", "quantsr"])
def test_offsets_in_front_of_linear_layers_run_in_engines(low, name):
    _, model = trained(name, low)
    frozen = model.freeze({})
    assert any(layer.offsets and layer.codes.dim() == 2 for layer in frozen.layers.values())
    session = onnxruntime.InferenceSession(lower(frozen).SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: low.numpy()})
    assert np.median(np.abs(output - frozen(low).numpy())) < 1e-2
