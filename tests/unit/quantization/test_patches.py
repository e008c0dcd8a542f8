"""Patches are what a convolution multiplies, whatever its geometry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odm_deploy import quantize
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.quantization import patches
from odm_deploy.quantization.patches import batch_of, layer_patches, rows_of
from tests.factories import random_images, tiny_network


@pytest.mark.parametrize("most", [10_000, 100])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 1), "padding": (2, 0), "dilation": (2, 1)},
        {"kernel_size": (2, 3), "stride": (2, 1), "groups": 2},
        {"kernel_size": 1, "stride": 3, "groups": 4},
    ],
)
def test_rows_are_those_of_unfold(options, most, monkeypatch):
    monkeypatch.setattr(patches, "PATCHES", (most, most))
    conv = nn.Conv2d(4, 8, **options)
    x = torch.randn(3, 4, 9, 11, generator=torch.Generator().manual_seed(0))
    found = rows_of(conv, x)
    unfolded = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # pyright: ignore[reportArgumentType]
    every = max(unfolded.shape[2] // (most // 3), 1)
    chosen = unfolded[:, :, ::every][:, :, : most // 3].unflatten(1, (conv.groups, -1))
    assert torch.equal(found, chosen.permute(1, 0, 3, 2).flatten(1, 2))
    assert found.is_contiguous()


@torch.no_grad()
def test_extremes_are_left_out_where_nobody_needs_them():
    network = tiny_network()
    images = [torch.from_numpy(random_images(16, 16, seed=0))]
    names = ["body.0.body.0", "body.0.body.2"]
    with_them = list(layer_patches(network, images, names))
    without = list(layer_patches(network, images, names, extremes=False))
    assert [each.extremes.shape[1] > 0 for each in with_them] == [True, True]
    assert [each.extremes.shape[1] for each in without] == [0, 0]
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(with_them, without, strict=True))


class OneImage(nn.Module):
    """Cuts an image into windows, as transformers do, but no batch of them; of any size, or of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.side_px: int | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = (self.side_px, self.side_px) if self.side_px else x.shape[2:]
        cut = self.first(x).view(1, 4, height // 8, 8, width // 8, 8)
        return self.last(self.body((cut - cut.mean((3, 5), keepdim=True)).reshape(1, 4, height, width)))


def test_networks_that_take_one_image_at_a_time_are_fitted():
    images = [torch.from_numpy(random_images(48, 48, seed=seed)) for seed in range(3)]
    network = OneImage()
    model = quantize(network, 8, images)
    with torch.no_grad():
        for image in images:
            expected = network(image / 255) * 255
            assert (model(image) - expected).square().mean().sqrt() < 0.02 * expected.std()


def test_images_are_given_as_a_batch_or_one_below_the_other_or_alone():
    images = [torch.from_numpy(random_images(48, 48, seed=seed)) for seed in range(3)]
    assert batch_of(images, tiny_network()).shape == (3, 3, 48, 48)
    network = foreign_network(OneImage())
    assert torch.equal(batch_of(images, network), torch.cat(images, 2))
    network.get_submodule("net").side_px = 48  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(batch_of(images, network), images[-1])
