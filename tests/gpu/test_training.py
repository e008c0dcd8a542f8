"""Training on a real GPU: what a simulated one cannot show.

How Triton's kernels round, whether kernels can be recorded while another thread pins memory, and whether Adam's one
kernel leaves a broken step out, only a GPU tells. Everything else about a step is tested on torch's `meta` device.
"""

from __future__ import annotations

import copy
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from odm_deploy.checkpoint import load_model
from odm_deploy.errors import InputError
from odm_deploy.networks.edsr import EDSR, EdsrConfig
from odm_deploy.quantization.policy import LayerBits
from tests.sr_graphs import random_images
from training.acceleration import compile_quantizers, use_tf32
from training.data import ImagePool, find_images, load_pairs
from training.distributed import World
from training.loop.cuda_graphs import GraphedStep
from training.loop.feeding import feed
from training.loop.outcome import Outcome
from training.loop.run import train
from training.loop.step import GradientStep, MovingAverage, build_optimizer, follow
from training.methods.registry import build_method, method_names
from training.model import TrainableModel
from training.quantizers.statistics import row_percentile
from training.recipe import OptimizerSection, RunSection
from training.recipe_files import load_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no NVIDIA GPU here"),
    # torch's compiler touches what torch deprecates or warns of, and means it.
    pytest.mark.filterwarnings("ignore"),
]


def attached(name: str, **options: Any) -> GradientStep:
    torch.manual_seed(1)
    network = EDSR(EdsrConfig(scale=2, features=16, blocks=2)).eval()
    method = build_method({"name": name, **({"mismatch_every": 2} if name == "odm_v2" else {}), **options})
    widths = {f"body.{block}.body.{conv}": LayerBits(4, 4) for block in (0, 1) for conv in (0, 2)}
    model = TrainableModel.attach(network, widths, method)
    model.network.cuda()
    model.calibrate(iter([torch.from_numpy(random_images(2, 16, 16)).cuda()]))
    method.initialize(model)
    model.project()
    method.watch(model, network)
    return GradientStep(model, method, World(), autocast=False)


@pytest.mark.parametrize("name", [name for name in method_names() if name != "float"])
def test_graphs_compute_the_gradients_of_separate_kernels(name: str) -> None:
    use_tf32(False)
    plain, recorded = attached(name), GraphedStep(attached(name))
    for iteration in range(4):
        low = torch.rand(2, 3, 16, 16, device="cuda") * 255
        high = torch.rand(2, 3, 32, 32, device="cuda") * 255
        expected, found = plain(low, high, iteration), recorded(low, high, iteration)
        assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
        assert (found.auxiliary_loss is None) == (expected.auxiliary_loss is None)
        for key, gradient in expected.combined.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(found.combined[key], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-7, msg=key)


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_channels_last_learns_what_planes_do(compiled: bool) -> None:
    """A recorded step whose gradients Adam's one kernel takes; cuDNN has other algorithms for it."""
    use_tf32(False)
    plain, last = attached("odm_v2"), attached("odm_v2")
    if compiled:
        compile_quantizers(last.model)
    last = replace(last, channels_last=True)
    optimizer, recorded = (
        build_optimizer(last.model, OptimizerSection(learning_rate=1e-9, range_learning_rate=1e-9)),
        GraphedStep(last),
    )
    for iteration in range(4):
        low = torch.rand(2, 3, 16, 16, device="cuda") * 255
        high = torch.rand(2, 3, 32, 32, device="cuda") * 255
        expected, found = plain(low, high, iteration), recorded(low, high, iteration)
        for key, gradient in expected.combined.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(found.combined[key], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-7, msg=key)
        follow(last.model, optimizer, found.combined)


QUANTIZERS = [
    ("odm_v2", {}),
    ("odm_v2", {"relative_ranges": True, "per_channel": True}),
    ("odm_v2", {"free": True}),
    ("odm_v2", {"power_of_two": True}),
    ("lsq", {}),
    ("pams", {}),
]


@pytest.mark.parametrize(("name", "options"), QUANTIZERS, ids=lambda value: "-".join(value) or "paper")
def test_compiled_quantizers_keep_every_code(name: str, options: dict[str, Any]) -> None:
    """Triton's own division does not round to the nearest, and it contracts products and sums."""
    model = attached(name, **options).model
    x = (torch.rand(1 << 20, device="cuda") * 400 - 200).reshape(16, 16, 64, 64)
    with torch.no_grad():
        expected = [(layer.activation(x), layer.weight_quantizer(layer.weight)) for layer in model.layers.values()]
        if not compile_quantizers(model):
            pytest.skip("this torch cannot compile divisions that round to the nearest")
        for layer, (levels, weight) in zip(model.layers.values(), expected, strict=True):
            assert torch.equal(layer.activation(x), levels)
            assert torch.equal(layer.weight_quantizer(layer.weight), weight)


def test_what_a_gpu_trains_with_is_what_is_frozen_on_a_cpu() -> None:
    for name, options in QUANTIZERS:
        model = attached(name, **options).model
        for layer in model.layers.values():
            levels = layer.weight_quantizer(layer.weight).detach().cpu()
            frozen = copy.deepcopy(layer).cpu().freeze().weight
            assert torch.equal(levels, frozen.codes.float() * frozen.scale.reshape(-1, 1, 1, 1))


def test_percentiles_are_those_of_a_cpu() -> None:
    values = torch.randn(3, 36864)
    for percent in (99.0, 100.0, 50.0):
        assert torch.equal(row_percentile(values.cuda(), percent).cpu(), row_percentile(values, percent))


def test_batches_arrive_as_they_were_made(samples: Path) -> None:
    pairs, _ = load_pairs(find_images([samples / "HR"]), 2, 24)
    pool = ImagePool(pairs, 2, 24, seed=1)
    with closing(feed(pool, RunSection(batch=4, device="cuda"), range(20), World())) as batches:
        for iteration, (low, high) in enumerate(batches):
            expected = pool.batch(iteration, 4)
            assert low.is_cuda and torch.equal(low.cpu(), expected[0].float())
            assert high.is_cuda and torch.equal(high.cpu(), expected[1].float())
    assert iteration == 19


def test_a_broken_step_is_left_out_and_refused(tmp_path: Path) -> None:
    step = attached("odm_v2")
    model, optimizer = step.model, build_optimizer(step.model, OptimizerSection())
    assert all(group["fused"] for group in optimizer.param_groups)
    before = {name: parameter.clone() for name, parameter in model.parameters().items()}
    low, high = (torch.rand(2, 3, side, side, device="cuda") * 255 for side in (16, 32))
    low[0, 0, 0, 0] = math.nan
    result = step(low, high, 0)
    outcome = Outcome.of(0, low, result)
    follow(model, optimizer, result.combined, outcome.broken)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.parameters().items())
    with pytest.raises(InputError, match="iteration 0: the loss is nan; the first NaN or infinity leaves"):
        outcome.check(model, tmp_path / "last.pt")
    low.nan_to_num_(0.0)
    result = step(low, high, 1)
    outcome = Outcome.of(1, low, result)
    follow(model, optimizer, result.combined, outcome.broken)
    outcome.check(model, tmp_path / "last.pt")
    assert not torch.equal(model.parameters()["head.0.weight"], before["head.0.weight"])


def test_a_step_asks_the_gpu_for_no_value() -> None:
    """Each such question would wait for the GPU; torch can make it an error."""
    step = attached("odm_v2")
    optimizer, average = build_optimizer(step.model, OptimizerSection()), MovingAverage(step.model, 0.9)
    low, high = (torch.rand(2, 3, side, side, device="cuda") * 255 for side in (16, 32))
    for iteration in range(4):
        torch.cuda.set_sync_debug_mode("error" if iteration >= 2 else "default")
        try:
            result = step(low, high, iteration)
            outcome = Outcome.of(iteration, low, result)
            follow(step.model, optimizer, result.combined, outcome.broken)
            average.update(step.model, iteration)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["run.compile=true"],
        ["run.cuda_graphs=true"],
        ["run.compile=true", "run.cuda_graphs=true"],
        ["run.compile=true", "run.cuda_graphs=true", "run.autocast=true", "optimizer.ema_decay=0.9"],
    ],
    ids=lambda settings: "-".join(each.split(".")[1] for each in settings) or "plain",
)
def test_a_run_learns_and_freezes(settings: list[str], tmp_path: Path, pytestconfig: pytest.Config) -> None:
    (tmp_path / "recipe.toml").write_text("")
    images = pytestconfig.rootpath / "tests" / "data" / "samples" / "HR"
    overrides = [
        'network.weights=""',
        "network.config={features = 16, blocks = 2}",
        f'data.folders=["{images}"]',
        "data.patch=24",
        "data.validation_images=1",
        "run.iterations=40",
        'run.device="cuda"',
        *settings,
    ]
    recipe = load_recipe(tmp_path / "recipe.toml", overrides)
    train(recipe, tmp_path / "run", World())
    losses = [
        float(line.split('"loss": ')[1].split(",")[0])
        for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
        if '"loss"' in line
    ]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    model = load_model(tmp_path / "run" / "model.pt")
    assert len(model.layers) == 4
