"""Which channels have to be scaled alike, and that a network computes the same after scaling them."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odm_deploy.networks.channels import scalable_channels
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.networks.registry import build_network
from tests.factories import random_images, tiny_network

NETWORKS = {
    "edsr": {"scale": 4, "features": 6, "blocks": 2, "residual_scale": 0.1},
    "rdn": {"scale": 2, "blocks": 2, "convolutions": 2, "growth": 4, "features": 6},
    "srresnet": {"scale": 4, "features": 6, "blocks": 2},
}


def built(name):
    torch.manual_seed(7)
    return build_network(name, NETWORKS[name]).eval()


def scaled_by_powers_of_two(network):
    """Which channels may be scaled, and the network with each of them scaled by a power of two of its own."""
    channels, scaled = scalable_channels(network), copy.deepcopy(network)
    factors = np.exp2(np.random.default_rng(0).integers(-3, 4, channels.count))
    factors[0] = 1.0
    channels.scaled(scaled, factors)
    return channels, scaled


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_powers_of_two_change_no_bit_of_the_result(name):
    network = built(name)
    channels, scaled = scaled_by_powers_of_two(network)
    image = torch.from_numpy(random_images(12, 10))
    assert torch.equal(scaled(image), network(image))
    moved = [layer for layer in channels.reads if not torch.equal(scaled.state_dict()[f"{layer}.weight"],
                                                                  network.state_dict()[f"{layer}.weight"])]  # fmt: skip
    assert moved == list(channels.reads)


def test_a_residual_stream_is_scaled_alike_and_neither_image_nor_result_is():
    channels = scalable_channels(tiny_network())
    stream = channels.writes["head.0"]
    assert len(set(stream)) == len(stream) and 0 not in stream
    for layer in ("body.0.body.2", "body.1.body.2", "body.2"):
        assert np.array_equal(channels.writes[layer], stream)
    for layer in ("body.0.body.0", "body.1.body.0", "tail.0.0"):
        assert np.array_equal(channels.reads[layer], stream)
    assert not set(channels.writes["body.0.body.0"]) & set(stream)
    assert not channels.reads["head.0"].any()
    assert not channels.writes["tail.1"].any()


def test_channels_that_a_shuffle_makes_one_of_are_one_set():
    channels = scalable_channels(tiny_network(scale=2))
    shuffled = channels.writes["tail.0.0"].reshape(-1, 4)
    assert (shuffled == shuffled[:, :1]).all()
    assert np.array_equal(shuffled[:, 0], channels.reads["tail.1"])


class Gated(nn.Module):
    """What is multiplied by its own gate, or passes through something that is not homogeneous, stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 12, 1)

    def forward(self, x):
        x = self.first(x)
        return F.pixel_shuffle(self.last(x * torch.sigmoid(self.gate(x))), 2)


def test_products_and_sigmoids_hold_channels_fast():
    channels = scalable_channels(foreign_network(Gated(), input_range=255.0))
    assert channels.count == 1


class Read(nn.Module):
    """Three convolutions, the second of which something else reads as well, or something that is not homogeneous."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.next, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 1)
        self.how = how
        if how == "tied":
            self.next.weight, self.next.bias = self.deep.weight, self.deep.bias
        self.register_buffer("one", torch.ones(1))

    def forward(self, x):
        deep = self.deep(torch.relu(self.first(x)))
        read = deep
        if self.how == "divisor":
            read = torch.div(self.one, deep)
        elif self.how == "rounded":
            read = torch.div(deep, 0.01, rounding_mode="floor")
        elif self.how == "weight":
            read = F.conv2d(deep, self.deep.weight, self.deep.bias, padding=1)
        found = self.next(read)
        if self.how == "compared":
            found = found * (deep > 0.5).float()
        elif self.how == "scripted":
            return _scripted(F.pixel_shuffle(self.last(found), 2))
        return F.pixel_shuffle(self.last(found), 2)


def _gated(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x) + 0.1


with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
    _scripted = torch.jit.script(_gated)


@pytest.mark.parametrize("how", ["tied", "divisor", "rounded", "weight", "compared", "scripted"])
@torch.no_grad()
def test_what_is_read_otherwise_is_not_scaled(how):
    network = foreign_network(Read(how), input_range=255.0)
    _, scaled = scaled_by_powers_of_two(network)
    image = torch.from_numpy(random_images(12, 10))
    assert torch.equal(scaled(image), network(image))
