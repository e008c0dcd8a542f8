"""Recorded steps; the recorder here computes again where the real one, which `tests/gpu` has, replays kernels."""

import dataclasses

import pytest
import torch

from odm_deploy.errors import UsageError
from training.distributed import World
from training.loop.cuda_graphs import GraphedStep
from training.loop.preparation import build_gradient_step
from training.loop.step import GradientStep, build_optimizer
from training.recipe import OptimizerSection, Recipe, RunSection

ITERATIONS = 6


def compute_again(work):
    """As a CUDA graph would: two warm-up runs, a result whose tensors stay, and a replay that overwrites them."""
    work()
    work()
    result = work()

    def replay():
        again = work()
        for field in dataclasses.fields(result):
            kept, new = getattr(result, field.name), getattr(again, field.name)
            for old, now in zip(tensors_of(kept), tensors_of(new), strict=True):
                with torch.no_grad():
                    old.copy_(now)

    return replay, result


def tensors_of(value):
    if value is None:
        return []
    return list(value.values()) if isinstance(value, dict) else [value]


def batch(iteration):
    generator = torch.Generator().manual_seed(iteration)
    return torch.rand(2, 3, 12, 14, generator=generator) * 255, torch.rand(2, 3, 24, 28, generator=generator) * 255


def train(method, model, step):
    optimizer = build_optimizer(model, OptimizerSection(learning_rate=1e-3))
    for iteration in range(ITERATIONS):
        gradients = step(*batch(iteration), iteration)
        for name, parameter in model.parameters().items():
            gradient = gradients.combined.get(name)
            parameter.grad = None if gradient is None else gradient.clone()
        optimizer.step()
        model.project()
    return model.network.state_dict()


@pytest.mark.parametrize(
    ("name", "options", "graphs"),
    [
        ("odm_v2", {"mismatch_every": 3, "mismatch_weight": 1e-2}, 2),
        ("odm_v2", {"power_of_two": True, "anneal_exponents": 4}, 1),
        ("ddtb", {"gate_start": 3, "gate_share": 0.5}, 2),
        ("lsq", {}, 1),
    ],
    ids=["odm_v2-every-third", "odm_v2-annealed", "ddtb-gates", "lsq"],
)
def test_replaying_trains_as_computing_does(attach, name, options, graphs):
    torch.manual_seed(1)
    method, model = attach(name, 2, **options)
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    expected = train(method, model, GradientStep(model, method, World(), autocast=False))
    assert any(not torch.equal(expected[key], before[key]) for key in before)

    torch.manual_seed(1)
    method, model = attach(name, 2, **options)
    recorded = []

    def record(work):
        recorded.append(work)
        return compute_again(work)

    found = train(method, model, GraphedStep(GradientStep(model, method, World(), autocast=False), record))
    assert len(recorded) == graphs
    assert found.keys() == expected.keys()
    for key in found:
        assert torch.equal(found[key], expected[key]), key


def test_warming_up_leaves_running_statistics_alone(attach):
    method, model = attach("ddtb", 2, gate_start=100, gate_share=1.0)
    before = {name: buffer.clone() for name, buffer in model.network.named_buffers()}

    def record_only(work):
        _, result = compute_again(work)
        return lambda: None, result

    GraphedStep(GradientStep(model, method, World(), autocast=False), record_only)(*batch(0), 0)
    changed = [name for name, buffer in model.network.named_buffers() if not torch.equal(buffer, before[name])]
    assert changed == []
    assert any("running_mean" in name for name in before)


@pytest.mark.parametrize(
    ("run", "exact", "world", "why"),
    [
        (RunSection(cuda_graphs=True), False, World(), 'run.device is "cpu"'),
        (RunSection(cuda_graphs=True, device="cuda"), True, World(), "exact"),
        (RunSection(cuda_graphs=True, device="cuda"), False, World(0, 2), "several processes"),
    ],
    ids=["cpu", "exact", "two-processes"],
)
def test_what_cannot_be_recorded_is_refused(attach, run, exact, world, why):
    method, model = attach("odm_v2", 2)
    with pytest.raises(UsageError, match=r"run\.cuda_graphs = true") as error:
        build_gradient_step(Recipe(run=run), dataclasses.replace(model, exact=exact), method, world)
    assert why in str(error.value)
