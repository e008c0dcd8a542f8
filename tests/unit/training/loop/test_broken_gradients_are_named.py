"""Broken steps are refused by name, before they count."""

import math
from types import SimpleNamespace

import pytest
import torch

from odm_deploy.errors import InputError
from training.loop.outcome import Outcome
from training.loop.step import build_optimizer, follow
from training.methods.base import Gradients
from training.recipe import OptimizerSection


def outcome(gradients, loss=1.0):
    return Outcome.of(7, torch.zeros(1), Gradients(torch.tensor(loss), {}, None, {}, gradients))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_parameter_with_a_broken_gradient_is_named(value, tmp_path):
    gradients = {name: torch.ones(3, 4) for name in ("head", "body", "tail")}
    outcome(gradients).check(SimpleNamespace(), tmp_path)
    gradients["body"][1, 2] = value
    with pytest.raises(InputError, match=r"iteration 7.*gradient of body is not finite"):
        outcome(gradients).check(SimpleNamespace(), tmp_path)


def test_gradients_too_large_to_add_up_are_no_better(tmp_path):
    with pytest.raises(InputError, match="all together"):
        outcome({"head": torch.full((10,), 3e38)}).check(SimpleNamespace(), tmp_path)


def test_a_broken_loss_names_the_layer_it_comes_from(attach, low, tmp_path):
    _, model = attach("odm_v2", 4)
    with torch.no_grad():
        model.network.get_submodule("body.1.body.0").weight.fill_(math.nan)
    found = Outcome.of(3, low, Gradients(torch.tensor(math.nan), {}, None, {}, {"x": torch.ones(1)}))
    with pytest.raises(InputError, match=r"iteration 3: the loss is nan; .* leaves body\.1\.body\.0"):
        found.check(model, tmp_path / "last.pt")


def test_an_optimizer_leaves_a_broken_step_out_by_itself(attach):
    """As on a GPU, where nobody looks before the step: torch has the same fused Adam for CPUs."""
    _, model = attach("odm_v2", 4)
    fused = build_optimizer(model, OptimizerSection())
    for group in fused.param_groups:
        group["fused"] = True
    before = {name: parameter.clone() for name, parameter in model.parameters().items()}
    gradients = {name: torch.full_like(parameter, math.nan) for name, parameter in before.items()}
    follow(model, fused, gradients, torch.tensor(1.0))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.parameters().items())
    gradients = {name: torch.ones_like(parameter) for name, parameter in before.items()}
    follow(model, fused, gradients, torch.tensor(0.0))
    assert not torch.equal(model.parameters()["head.0.weight"], before["head.0.weight"])
