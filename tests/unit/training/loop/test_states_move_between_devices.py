"""A state that a GPU's fused Adam saved goes on with a CPU's Adam, and the other way round."""

import copy

import pytest
import torch

from training.loop.state import Progress, load_state, save_state
from training.loop.step import MovingAverage, build_optimizer, follow
from training.recipe import OptimizerSection


@pytest.mark.parametrize("saved_fused", [True, False])
def test_how_adam_runs_is_not_taken_over(attach, tmp_path, saved_fused):
    _, model = attach("odm_v2", 4)
    optimizers = [build_optimizer(model, OptimizerSection()) for _ in range(2)]
    for optimizer, fused in zip(optimizers, (saved_fused, not saved_fused), strict=True):
        optimizer.defaults["fused"] = fused
        for group in optimizer.param_groups:
            group["fused"] = fused
    gradients = {name: torch.ones_like(parameter) for name, parameter in model.parameters().items()}
    follow(model, optimizers[0], gradients)
    average = MovingAverage(model, 0.9)
    save_state(tmp_path / "last.pt", model, optimizers[0], average, Progress(1))
    load_state(tmp_path / "last.pt", model, optimizers[1], average)
    assert all(group["fused"] is not saved_fused for group in optimizers[1].param_groups)

    went_on = copy.deepcopy({name: parameter.detach() for name, parameter in model.parameters().items()})
    follow(model, optimizers[1], gradients)
    after = {name: parameter.detach().clone() for name, parameter in model.parameters().items()}
    load_state(tmp_path / "last.pt", model, optimizers[0], average)
    follow(model, optimizers[0], gradients)
    for name, parameter in model.parameters().items():
        assert not torch.equal(after[name], went_on[name])
        torch.testing.assert_close(parameter.detach(), after[name], rtol=1e-5, atol=1e-7)
