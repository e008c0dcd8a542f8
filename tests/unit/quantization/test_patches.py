"""Patches are what a convolution multiplies, whatever its geometry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odm_deploy.quantization import patches
from odm_deploy.quantization.patches import layer_patches, rows_of
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
