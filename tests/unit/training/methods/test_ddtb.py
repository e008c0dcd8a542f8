"""DDTB's gates: what they scale, what warms them up, and what they become."""

import numpy as np
import pytest
import torch

from training.distributed import World
from training.methods.base import Step


def test_ddtb_gates_scale_the_range_of_each_image(attach, low):
    method, model = attach("ddtb", 4, gate_share=1.0, gate_start=10)
    quantizer = next(iter(model.layers.values())).activation
    x = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0)) * 50
    method.begin_iteration(model, 9)
    static = quantizer(x)
    assert len(static.unique()) <= 16
    method.begin_iteration(model, 10)
    dynamic = quantizer(x)
    lower, upper = (bound.item() for bound in quantizer.range)
    factors = 2 * torch.sigmoid(quantizer.gate(x))
    for image in range(2):
        assert len(dynamic[image].unique()) <= 16
        width = upper * factors[image, 0].item() - lower * factors[image, 1].item()
        levels = dynamic[image].unique()
        assert torch.diff(levels).min().item() == pytest.approx(width / 15, rel=1e-3)


def test_ddtb_gates_become_the_constants_they_were_on_average(attach, low):
    method, model = attach("ddtb", 4, gate_share=1.0, gate_start=0, remove_gates=True)
    assert method.why_not_exportable() is None
    method.begin_iteration(model, 0)
    quantizer = next(iter(model.layers.values())).activation
    lower, upper = (bound.item() for bound in quantizer.range)
    for _ in range(600):
        quantizer(low.repeat(1, 2, 1, 1))
    factors = 2 * torch.sigmoid(quantizer.gate(low.repeat(1, 2, 1, 1))).mean(0)
    assert "4 layers" in method.simplify(model)
    assert quantizer.range[1].item() == pytest.approx(upper * factors[0].item(), rel=0.02)
    assert quantizer.range[0].item() == pytest.approx(lower * factors[1].item(), rel=0.02)
    model.network.eval()
    with torch.no_grad():
        trained = model(low)
    assert torch.equal(model.freeze({})(low), trained)


def test_ddtb_warm_up_adds_the_squared_logits(attach, low):
    method, model = attach("ddtb", 4, gate_share=1.0, gate_start=10)
    target = torch.zeros(2, 3, 24, 28)
    losses = []
    for iteration in (0, 10):
        step = Step(model, low, target, model(low), iteration, World())
        losses.append(method.reconstruction_loss(step).item())
    with model.recording():
        model(low)
        logits = [
            layer.activation.gate(x) for layer, (x, _) in zip(model.layers.values(), model.records(), strict=True)
        ]
    expected = np.mean([logit.square().mean().item() for logit in logits])
    assert losses[0] - losses[1] == pytest.approx(expected, abs=1e-4)


def test_ddtb_gates_pass_nothing_back_into_the_features(attach):
    _, model = attach("ddtb", 2, gate_share=1.0, gate_start=0)
    gate = next(iter(model.layers.values())).activation.gate
    x = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gate(x).square().sum().backward()
    assert x.grad is None
    assert gate.squeeze.weight.grad is None
    assert gate.excite.weight.grad is not None


def test_ddtb_gate_weights_are_ternary(attach):
    _, model = attach("ddtb", 2, gate_share=1.0, gate_start=0, whole_gate=True)
    gate = next(iter(model.layers.values())).activation.gate
    gate.eval()
    # One channel after the other: the pooled image is a unit vector, whose extremes are levels themselves.
    columns = [gate.squeeze(torch.eye(6)[index : index + 1]) for index in range(6)]
    assert len(torch.cat(columns).unique()) > 6
    with torch.no_grad():
        bound = gate.squeeze.weight.abs().max()
        expected = torch.round(gate.squeeze.weight / bound) * bound
        seen = []
        gate.normalize.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        for index in range(6):
            gate(torch.eye(6)[index].reshape(1, 6, 1, 1))
    assert torch.allclose(torch.cat(seen).T, expected, atol=1e-6)


def test_ddtb_gates_as_many_layers_as_the_authors(attach):
    _, model = attach("ddtb", 4, gate_share=0.45)
    gated = [layer for layer in model.layers.values() if layer.activation.has_gate.is_set]
    assert len(gated) == 1
