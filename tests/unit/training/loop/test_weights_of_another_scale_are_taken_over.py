"""Weights of one scale as the start of another."""

import numpy as np
import pytest
import torch
from torch import nn

from odm_deploy.errors import InputError, UsageError
from odm_deploy.networks.edsr import EDSR, EdsrConfig
from odm_deploy.quantization.quantize import quantize
from tests.factories import random_images
from training.loop.preparation import load_float_network, rescaled
from training.recipe import NetworkSection, Recipe


@pytest.fixture
def donor():
    torch.manual_seed(1)
    return EDSR(EdsrConfig(scale=4, features=6, blocks=2)).eval()


@pytest.mark.parametrize(("scale", "fresh"), [(2, set()), (3, {"tail.0.0.weight", "tail.0.0.bias"})])
def test_what_fits_is_taken_over_and_the_rest_is_fresh(donor, scale, fresh):
    network, again, other = (rescaled(donor, scale, seed) for seed in (5, 5, 6))
    assert network.scale == scale
    assert network(torch.rand(1, 3, 5, 7) * 255).shape == (1, 3, 5 * scale, 7 * scale)
    for key, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        if key in fresh:
            assert not torch.equal(value, other.state_dict()[key])
        else:
            assert torch.equal(value, donor.state_dict()[key])


def test_a_recipe_says_of_which_scale_its_weights_are(donor, tmp_path):
    torch.save(donor.state_dict(), tmp_path / "x4.pt")
    right = Recipe(network=NetworkSection(scale=2, weights=str(tmp_path / "x4.pt"), weights_scale=4))
    network = load_float_network(right)
    assert torch.equal(network.state_dict()["head.0.weight"], donor.state_dict()["head.0.weight"])
    wrong = Recipe(network=NetworkSection(scale=2, weights=str(tmp_path / "x4.pt")))
    with pytest.raises(InputError, match="weights of EDSR x4"):
        load_float_network(wrong)


def test_networks_from_elsewhere_are_refused():
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)
    )
    images = [image.astype(np.uint8) for image in random_images(12, 12).transpose(0, 2, 3, 1)]
    foreign = quantize(module, 8, images).network
    with pytest.raises(InputError, match="weights of another scale for foreign"):
        rescaled(foreign, 4, 0)


def test_fresh_weights_are_of_no_scale():
    with pytest.raises(UsageError, match=r"network\.weights_scale = 4"):
        Recipe(network=NetworkSection(weights="", weights_scale=4))
