"""Training on a real GPU: CUDA graphs compute what separate kernels do, and a run ends in a model that exports."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from odm_deploy.checkpoint import load_model
from odm_deploy.networks.edsr import EDSR, EdsrConfig
from odm_deploy.quantization.policy import LayerBits
from tests.sr_graphs import random_images
from training.acceleration import use_tf32
from training.distributed import World
from training.loop.cuda_graphs import GraphedStep
from training.loop.run import train
from training.loop.step import GradientStep
from training.methods.registry import build_method, method_names
from training.model import TrainableModel
from training.recipe_files import load_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no NVIDIA GPU here"),
    # torch's compiler touches what torch deprecates or warns of, and means it.
    pytest.mark.filterwarnings("ignore"),
]


def attached(name: str) -> GradientStep:
    torch.manual_seed(1)
    network = EDSR(EdsrConfig(scale=2, features=16, blocks=2)).eval()
    method = build_method({"name": name, **({"mismatch_every": 2} if name == "odm_v2" else {})})
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


@pytest.mark.parametrize("settings", [[], ["run.compile=true"], ["run.cuda_graphs=true"], ["run.autocast=true"]])
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
