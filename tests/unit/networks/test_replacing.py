"""A layer that code calls by several names is one layer: quantized under all of them, counted once, saved once."""

from __future__ import annotations

import torch
from torch import nn

from odm_deploy import quantize
from odm_deploy.accounting import float_shares
from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.networks.replacing import all_names, replace_modules
from odm_deploy.networks.trusted_builders import trusting
from tests.factories import random_images


class Aliased(nn.Module):
    """One convolution of two names, in a block of two names."""

    def __init__(self):
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.b1 = self.b2 = nn.Module()
        self.b1.one = self.b1.two = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.head(x))
        for layer in (self.b1.one, self.b1.two, self.b2.one, self.b2.two):
            x = torch.relu(layer(x)) + x
        return nn.functional.pixel_shuffle(self.tail(x), 2)


def test_modules_are_replaced_under_all_of_their_names():
    network = Aliased()
    names = ["b1.one", "b1.two", "b2.one", "b2.two"]
    assert all_names(network, {"b1.one", "missing"}) == names
    new = nn.Identity()
    replace_modules(network, {"b1.one": new})
    assert all(network.get_submodule(name) is new for name in names)
    assert isinstance(network.head, nn.Conv2d)


def test_a_quantized_model_has_no_float_twin_and_survives_its_file(tmp_path):
    torch.manual_seed(0)
    builder = f"{__name__}:Aliased"
    image = random_images(24, 24, seed=0)
    pixels = image[0].transpose(1, 2, 0).astype("uint8")
    model = quantize(Aliased().eval(), 8, [pixels], builder=builder, arguments={})
    assert list(model.layers) == ["net.b1.one"]
    assert {share.name for share in float_shares(model)} == {"net.head", "net.tail"}
    save_model(model, tmp_path / "model.pt")
    with trusting(builder):
        again = load_model(tmp_path / "model.pt")
    low = torch.from_numpy(image)
    assert torch.equal(again(low), model(low))
