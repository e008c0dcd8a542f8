"""What `make_exact` does to a network: constants become dyadic, and the function stays what it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from odm_deploy.errors import InputError
from odm_deploy.networks.dyadic_slopes import SLOPE_UNIT
from odm_deploy.networks.edsr import EXACT_MEAN, EXACT_MEAN_UNIT
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.networks.registry import build_network
from tests.exact_models import SIZES, small_network
from tests.factories import random_images, tiny_network

IMAGE = torch.from_numpy(random_images(24, 28))


def before_and_after(name, prepare=lambda network: None):
    """Outputs of a network and of its exact version, and the latter."""
    network = small_network(name)
    prepare(network)
    exact = copy.deepcopy(network)
    exact.make_exact()
    with torch.no_grad():
        return network(IMAGE), exact(IMAGE), exact


def test_edsr_subtracts_a_whole_grey_level_and_computes_the_same_inside():
    before, after, exact = before_and_after("edsr")
    assert exact.sub_mean.bias.tolist() == [-EXACT_MEAN] * 3
    assert torch.equal(exact.add_mean.bias % EXACT_MEAN_UNIT, torch.zeros(3))
    assert exact.config.residual_scale == 1.0
    # Two blocks, body end, upsampler: what zeros around the image do reaches 8 pixels, 16 at twice the size.
    inside = (after - before)[..., 16:-16, 16:-16].abs()
    assert float(inside.max()) <= EXACT_MEAN_UNIT / 2 + 1e-3
    assert float((after - before).abs().max()) < 8
    # The factor of 0.3 on residuals is in the weights now.
    original = small_network("edsr")
    last = "body.0.body.2"
    assert torch.allclose(
        exact.get_submodule(last).weight, original.get_submodule(last).weight * 0.3, rtol=1e-6, atol=0
    )


def test_the_pixel_grid_holds_every_pixel():
    for name in SIZES:
        network = small_network(name)
        network.make_exact()
        first = network.sub_mean.bias[0].item() if name == "edsr" else 0.0
        pixels = torch.arange(256.0).numpy()
        grid = network.pixel_grid
        assert (grid.fake_quantize(pixels + first) == pixels + first).all()


def test_srresnet_takes_grey_levels_and_rounds_slopes():
    def dyadic_slopes(network):
        for module in network.modules():
            if isinstance(module, nn.PReLU):
                module.weight.data.fill_(0.25)

    before, after, exact = before_and_after("srresnet", dyadic_slopes)
    assert exact.config.input_range == 255.0
    assert torch.allclose(before, after, rtol=1e-4, atol=2e-2)
    rounded = before_and_after("srresnet")[2]
    slopes = [module.weight.detach() for module in rounded.modules() if isinstance(module, nn.PReLU)]
    assert slopes
    assert all(float(slope) % SLOPE_UNIT == 0 for slope in slopes)


def test_rdn_stays_as_it_is():
    before, after, _ = before_and_after("rdn")
    assert torch.equal(before, after)


def test_the_range_of_somebody_elses_images_is_folded_into_biases():
    def dyadic_slopes(network):
        for module in network.modules():
            if isinstance(module, nn.PReLU):
                module.weight.data.fill_(0.25)
            elif isinstance(module, nn.LeakyReLU):
                module.negative_slope = 0.125

    before, after, exact = before_and_after("compact", dyadic_slopes)
    assert exact.config.input_range == 255.0
    assert torch.allclose(before, after, rtol=1e-4, atol=2e-2)
    rounded = before_and_after("compact")[2]
    assert [m.negative_slope for m in rounded.modules() if isinstance(m, nn.LeakyReLU)] == [2 * SLOPE_UNIT]


class Shifted(nn.Module):
    """What it gives is no multiple of what it is given, beyond biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.conv(x - 0.5), 2)


def test_a_range_that_cannot_be_folded_is_refused():
    with pytest.raises(InputError, match="cannot be exact: brighter images do not come out proportionally brighter"):
        foreign_network(Shifted()).make_exact()


def test_doing_it_twice_changes_nothing():
    for name in SIZES:
        once = before_and_after(name)[2]
        twice = copy.deepcopy(once)
        twice.make_exact()
        assert all(torch.equal(value, once.state_dict()[key]) for key, value in twice.state_dict().items())


def test_what_cannot_be_exact_says_so():
    with pytest.raises(InputError, match="swinir cannot be exact"):
        tiny_network("swinir").make_exact()


def test_batch_norms_become_part_of_the_convolutions():
    torch.manual_seed(3)
    network = build_network("srresnet", {"scale": 2, "features": 4, "blocks": 1, "folded": False}).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 2)
            module.running_var.uniform_(0.2, 4)
        elif isinstance(module, nn.PReLU):
            module.weight.data.fill_(0.25)
    exact = copy.deepcopy(network)
    exact.make_exact()
    assert exact.config.folded
    assert not any(isinstance(module, nn.BatchNorm2d) for module in exact.modules())
    with torch.no_grad():
        expected = network(IMAGE)
        torch.testing.assert_close(exact(IMAGE), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
