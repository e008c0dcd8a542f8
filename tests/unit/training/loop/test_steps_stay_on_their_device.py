"""A training step on another device than the processor's: nothing stays behind, and no value is asked for.

Tensors on torch's `meta` device have no values: an operation that mixes devices, or reads a result back, is an error
there. A GPU would wait at each of the latter, and could not replay them as a CUDA graph.
"""

import pytest
import torch

from training.distributed import World
from training.loop.step import GradientStep, MovingAverage, build_optimizer, follow
from training.methods.registry import method_names
from training.recipe import OptimizerSection

OPTIONS = {
    "odm_v2": [
        {},
        {"update": "global"},
        {"update": "element"},
        {"per_channel": True, "relative_ranges": True, "range_init": "mse", "gamma_init": "mse", "teacher_weight": 0.5},
        {"free": True},
        {"power_of_two": True, "anneal_exponents": 4},
    ],
    "odm_v1": [{"offset_share": 0.5}],
    "ddtb": [{"gate_start": 1}],
}
CASES = [(name, options) for name in method_names() if name != "float" for options in OPTIONS.get(name, [{}])]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}-{'-'.join(o) or 'paper'}" for name, o in CASES])
def test_a_step_stays_on_its_device_and_asks_for_no_value(attach, small_network, name, options):
    method, model = attach(name, 2, **options)
    model.network.to("meta")
    method.watch(model, small_network)
    optimizer = build_optimizer(model, OptimizerSection())
    average = MovingAverage(model, 0.9)
    step = GradientStep(model, method, World(), autocast=False)
    for iteration in range(2):
        low = torch.empty(2, 3, 12, 14, device="meta")
        result = step(low, torch.empty(2, 3, 24, 28, device="meta"), iteration)
        follow(model, optimizer, result.combined)
        average.update(model, iteration)
    assert all(gradient.is_meta for gradient in result.combined.values())
    assert len(result.combined) > len(model.layers)
