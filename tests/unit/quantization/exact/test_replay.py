"""Replayed runs: the same bits as whole ones, whatever the network does to the tensors it is handed."""

from __future__ import annotations

import copy

import pytest
import torch

from odm_deploy.grid import Grid
from odm_deploy.quantization.exact import replay
from odm_deploy.quantization.exact.replay import replaying
from odm_deploy.quantization.model import QuantizedModel
from tests.exact_models import calibrated_exact
from tests.factories import random_images

IMAGES = [torch.from_numpy(random_images(14, 16, seed=seed)) for seed in range(2)]


def small_exact() -> QuantizedModel:
    return QuantizedModel(copy.deepcopy(calibrated_exact("edsr", 4).network))


@pytest.fixture(params=["held", "nothing held", "some held"])
def model(request, monkeypatch):
    monkeypatch.setattr(replay, "KEPT_MIB", {"held": 512, "nothing held": 0, "some held": 0.05}[request.param])
    return small_exact()


def widened(grid: Grid) -> Grid:
    return Grid(grid.scale * 2, grid.zero_point, grid.bits)


def test_runs_with_a_changed_layer_are_those_of_the_whole_model(model):
    with replaying(model) as runs:
        for number, image in enumerate(IMAGES):
            runs.first(number, image)
        for layer in runs.order:
            kept, layer.grid = layer.grid, widened(layer.grid)
            runs.begin()
            found = [runs.again(number, image, layer) for number, image in enumerate(IMAGES)]
            if layer is runs.order[3]:
                runs.keep()  # later layers see this one changed
            whole = _whole(model)
            assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True)), layer.name
            if layer is not runs.order[3]:
                layer.grid = kept


def test_layers_in_front_of_the_changed_one_do_not_compute(monkeypatch):
    model = small_exact()
    with replaying(model) as runs:
        runs.first(0, IMAGES[0])
        computed = []
        for layer in runs.order:
            inner = type(layer).product
            monkeypatch.setattr(
                layer, "product", lambda *a, layer=layer, inner=inner: computed.append(layer) or inner(layer, *a)
            )
        runs.begin()
        runs.again(0, IMAGES[0], runs.order[2])
        assert computed == runs.order[2:]


def test_a_network_that_writes_into_its_tensors_spoils_nothing():
    model = small_exact()
    middle = next(iter(model.layers.values()))
    hook = middle.register_forward_hook(lambda module, inputs, output: output.mul_(0.5))
    try:
        with replaying(model) as runs:
            first = runs.first(0, IMAGES[0])
            last = runs.order[-1]
            runs.begin()
            assert torch.equal(runs.again(0, IMAGES[0], last), first)
            assert torch.equal(runs.again(0, IMAGES[0], last), first)
    finally:
        hook.remove()


def test_nothing_is_copied_that_nobody_writes_into(monkeypatch):
    model = small_exact()
    with replaying(model) as runs:
        first = runs.first(0, IMAGES[0])
        copies = []
        clone = torch.Tensor.clone
        monkeypatch.setattr(torch.Tensor, "clone", lambda tensor: copies.append(tensor.shape) or clone(tensor))
        runs.begin()
        assert torch.equal(runs.again(0, IMAGES[0], runs.order[3]), first)
        runs.keep()
        assert torch.equal(runs.again(0, IMAGES[0], runs.order[-1]), first)
    assert copies == []


def test_layers_are_themselves_again_afterwards():
    model = small_exact()
    with pytest.raises(ZeroDivisionError), replaying(model):
        raise ZeroDivisionError
    assert all("forward" not in vars(layer) for layer in model.layers.values())


def _whole(model) -> list[torch.Tensor]:
    """What the model makes of the images on its own."""
    layers = list(model.layers.values())
    replayed = {layer: vars(layer).pop("forward") for layer in layers}
    try:
        return [model(image) for image in IMAGES]
    finally:
        for layer, forward in replayed.items():
            layer.forward = forward
