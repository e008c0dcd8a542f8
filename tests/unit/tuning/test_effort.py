"""Large networks see less of each image, small ones all of it."""

from __future__ import annotations

import pytest
from torch import nn

from odm_deploy.networks.foreign import foreign_network
from odm_deploy.networks.registry import build_network
from odm_deploy.tuning.effort import LEAST_PX, affordable_px, macs_of
from tests.factories import tiny_network


def test_multiply_adds_a_pixel_of_the_input():
    network = build_network("edsr", {"scale": 2, "features": 8, "blocks": 1})
    shapes = [value.shape for name, value in network.named_parameters() if name.endswith("weight") and value.dim() == 4]
    once = sum(shape.numel() for shape in shapes)
    # The last layer works at twice the height and width.
    assert macs_of(network) == pytest.approx(once + 3 * shapes[-1].numel(), rel=0.1)


def test_code_that_does_not_run_without_data_counts_its_weights():
    class Peeking(nn.Module):
        scale = 1

        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1, bias=False)

        def forward(self, x):
            return self.layer(x) if float(x.sum()) >= 0 else x

    network = foreign_network(Peeking().eval(), builder="tests:Peeking", arguments={}, input_range=255.0)
    assert macs_of(network) == 81


def test_the_side_follows_from_what_is_affordable():
    network = tiny_network()
    macs = macs_of(network)
    assert affordable_px(network, 4, 4 * macs * 100**2, 256) == 96
    assert affordable_px(network, 4, 1e30, 256) == 256
    assert affordable_px(network, 4, 1.0, 256) == LEAST_PX
