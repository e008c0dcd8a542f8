"""Learned steps: LSQ's gradient and start, QuantSR's derivative and shift."""

import numpy as np
import onnxruntime
import pytest
import torch

from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.lowering.lower import lower
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.policy import LayerBits
from odm_deploy.quantization.straight_through.step import rounding_derivative, step_quantize
from training.distributed import World
from training.loop.step import GradientStep, build_optimizer, follow
from training.methods.registry import build_method
from training.model import TrainableModel
from training.quantizers.learned_step import LearnedStep
from training.recipe import OptimizerSection


def test_lsq_gradient_is_equation_3():
    x = torch.tensor([-9.0, 0.4, 1.6, 9.0], requires_grad=True)
    step = torch.tensor(1.0, requires_grad=True)
    weights = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    (step_quantize(x, step, 4, 3, gradient_scale=0.5) * weights).sum().backward()
    assert step.grad.item() == pytest.approx(0.5 * (-4.0 + 10 * (0 - 0.4) + 100 * (2 - 1.6) + 3000.0), rel=1e-5)
    assert x.grad.tolist() == [0.0, 10.0, 100.0, 0.0]


def test_lsq_is_unsigned_after_a_relu_and_starts_at_twice_the_mean():
    quantizer = LearnedStep(4, scale_gradients=True)
    x = torch.rand(2, 3, 4, 4)
    quantizer.observe(x)
    quantizer.initialize()
    assert (quantizer.negative_codes, quantizer.positive_codes) == (0, 15)
    assert quantizer.step.item() == pytest.approx(2 * x.mean().item() / 15**0.5, rel=1e-5)
    quantizer.observe(x - 0.5)
    quantizer.initialize()
    assert (quantizer.negative_codes, quantizer.positive_codes) == (8, 7)


def test_quantsr_derivative_is_the_formula_and_averages_to_one():
    quotient = torch.linspace(0, 1, 100001, dtype=torch.float64)[:-1]
    slope = rounding_derivative(quotient, "tanh")
    assert slope.mean().item() == pytest.approx(1.0, abs=1e-4)
    at_a_half = 1 / (2 * np.tanh(0.5))
    assert rounding_derivative(torch.tensor([0.5, -0.5, 3.5]), "tanh").tolist() == pytest.approx([at_a_half] * 3)


def test_quantsr_shifts_each_channel(attach):
    _, model = attach("quantsr", 4)
    quantizer = next(iter(model.layers.values())).activation
    with torch.no_grad():
        quantizer.shift.copy_(torch.arange(6.0))
    moved = quantizer.transform(torch.zeros(1, 6, 2, 2))
    assert moved[0, :, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_quantsr_learns_a_factor_on_each_shortcut_that_freezes_to_the_same_bits(small_network, low, tmp_path):
    method = build_method({"name": "quantsr"})
    network = method.adapt(small_network)
    assert torch.equal(network(low), small_network(low))
    widths = {f"body.{block}.body.{conv}": LayerBits(3, 3) for block in (0, 1) for conv in (0, 2)}
    model = TrainableModel.attach(network, widths, method)
    model.calibrate(iter([low]))
    method.initialize(model)
    target = torch.zeros(2, 3, 24, 28)
    result = GradientStep(model, method, World(), autocast=False)(low, target, 0)
    optimizer = build_optimizer(model, OptimizerSection(learning_rate=1e-2), method.at_weights_rate)
    follow(model, optimizer, result.combined)
    shortcuts = [model.network.get_parameter(f"body.{block}.shortcut") for block in (0, 1)]
    assert all(shortcut.item() == pytest.approx(1.0, abs=0.011) and shortcut.item() != 1.0 for shortcut in shortcuts)
    model.network.eval()
    save_model(model.freeze({}), tmp_path / "model.pt")
    frozen = load_model(tmp_path / "model.pt")
    with torch.no_grad():
        assert torch.equal(frozen(low), model(low))
    session = onnxruntime.InferenceSession(lower(frozen).SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": low.numpy()})
    assert np.median(np.abs(output - frozen(low).numpy())) < 1e-3


def test_quantsr_leaves_other_networks_and_unwanted_shortcuts_alone(small_network):
    assert build_method({"name": "quantsr", "shortcut": False}).adapt(small_network) is small_network
    srresnet = build_network("srresnet", {"scale": 2, "features": 6, "blocks": 1})
    assert build_method({"name": "quantsr"}).adapt(srresnet) is srresnet
