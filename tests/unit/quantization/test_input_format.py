"""Range and colour order of somebody else's network, found by trying it on images."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odm_deploy.errors import InputError
from odm_deploy.imaging.reading import list_images, read_rgb
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.networks.loading import load_network
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.input_format import find_input_format, settle_input_format
from tests.spandrel_here import require_spandrel


class Clipping(nn.Module):
    """Enlarges what lies between a twentieth of `white` and a share of it per channel: little, in another range."""

    def __init__(self, white: float, largest: tuple[float, float, float] = (1.0, 1.0, 1.0), scale: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.last = nn.Conv2d(3, 3, 1)
        for conv in (self.first, self.last):
            nn.init.zeros_(conv.bias)
            conv.weight.data.copy_(torch.eye(3).reshape(3, 3, 1, 1))
        self.white, self.scale = white, scale
        self.register_buffer("largest", torch.tensor(largest).reshape(1, 3, 1, 1) * white)

    def forward(self, x):
        kept = self.first(x).clamp(min=self.white / 20).minimum(self.largest)
        return self.last(F.interpolate(kept, scale_factor=self.scale, mode="bicubic"))


@pytest.fixture(scope="module")
def photographs(samples):
    return [read_rgb(path) for path in list_images(samples / "HR")]


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_the_range_is_found(white, scale, photographs):
    network = foreign_network(Clipping(white, scale=scale))
    found = find_input_format(network, photographs)
    assert (found.input_range, found.channel_order, found.fits) == (white, "rgb", True)


def test_what_a_network_does_to_its_input_is_not_done_to_the_next_trial(photographs):
    class InPlace(Clipping):
        def forward(self, x):
            x *= 1.0 / self.white
            return super().forward(x * self.white)

    expected, found = (find_input_format(foreign_network(kind(255)), photographs) for kind in (Clipping, InPlace))
    assert str(found) == str(expected)


def test_networks_to_which_ranges_are_much_alike_take_0_to_1(photographs):
    module = Clipping(0)
    module.largest += torch.inf
    with torch.no_grad():
        module.first.bias.fill_(0.004)
    found = find_input_format(foreign_network(module), photographs)
    assert 0 < found.psnr_db[255, "rgb"] - found.psnr_db[1, "rgb"] < 0.2
    assert (found.input_range, found.channel_order) == (1, "rgb")


class Denoiser(Clipping):
    """Takes off what differs from the neighbours, up to a tenth of `white`: next to nothing, in a larger range."""

    def forward(self, x):
        x = self.last(self.first(x))
        return x - (x - F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)).clamp(
            -self.white / 10, self.white / 10
        )


def test_denoisers_are_tried_on_noise():
    rows, columns = np.mgrid[:96, :96, :1][:2]
    waves = 127.5 + 100 * np.sin(rows / [9, 11, 13] + columns / [12, 8, 10])
    found = find_input_format(foreign_network(Denoiser(1, scale=1)), [waves.round().astype(np.uint8)])
    assert (found.input_range, found.channel_order, found.fits) == (1, "rgb", True)


def test_a_reversed_order_is_found_where_it_matters(photographs):
    first_is_cut = Clipping(255, (0.25, 1.0, 1.0))
    warm = [(image // [1, 1, 4]).astype("uint8") for image in photographs]
    found = find_input_format(foreign_network(first_is_cut), warm)
    assert (found.input_range, found.channel_order) == (255, "bgr")


def test_what_was_found_is_in_the_network_and_said(photographs):
    tracked = list[tuple[int, str]]()

    def track(items, total, stage=""):
        tracked.append((total, stage))
        return iter(items)

    network, told = settle_input_format(foreign_network(Clipping(255)), {}, photographs, track)
    assert tracked == [(min(len(photographs), 3), "finding the input's format")]
    assert network.config.input_range == 255
    assert told.startswith("input 0..255 rgb, found by trying: 0..1 rgb ")
    # Its layers keep their names.
    assert network.config.head == ("net.first",)


def test_where_both_ranges_do_as_well_that_is_said(photographs):
    class Plain(Clipping):
        def forward(self, x):
            return torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest") + 0.0 * super().forward(x)

    network, told = settle_input_format(foreign_network(Plain(255)), {}, photographs)
    assert network.config.input_range == 1
    assert told.startswith("input 0..1 rgb, as most networks take it, since trying does not tell: 0..1 rgb ")


def test_where_the_order_alone_is_told_that_is_said(photographs):
    class DimsTheFirst(Clipping):
        def forward(self, x):
            dimmed = x * torch.tensor([0.25, 1.0, 1.0]).reshape(1, 3, 1, 1)
            return torch.nn.functional.interpolate(dimmed, scale_factor=2.0, mode="nearest") + 0.0 * super().forward(x)

    warm = [(image // [1, 1, 4]).astype("uint8") for image in photographs]
    _, told = settle_input_format(foreign_network(DimsTheFirst(255)), {}, warm)
    how = "bgr found by trying, and 0..1 as most networks take it, since trying does not tell that"
    assert told.startswith(f"input 0..1 bgr, {how}: 0..1 rgb ")


def test_what_the_user_says_is_not_tried(photographs):
    network = foreign_network(Clipping(255), input_range=1)
    assert settle_input_format(network, {"input_range": 1}, photographs) == (network, "")
    own = build_network("edsr", {"scale": 2, "features": 4, "blocks": 1})
    assert settle_input_format(own, {}, photographs) == (own, "")
    turned, _ = settle_input_format(foreign_network(Clipping(255)), {"channel_order": "bgr"}, photographs)
    assert turned.config.channel_order == "bgr"


def test_a_network_that_restores_nothing_is_refused_with_the_figures(photographs):
    class Black(Clipping):
        def forward(self, x):
            return super().forward(x) * 0

    with pytest.raises(InputError, match=r"no known input format: 0\.\.1 rgb .* dB.*--set input_range=1 or 255"):
        settle_input_format(foreign_network(Black(1)), {}, photographs)


def test_without_images_nothing_is_known():
    with pytest.raises(InputError, match="no images"):
        find_input_format(foreign_network(Clipping(1)), [])


def test_small_images_will_do(photographs):
    network = foreign_network(Clipping(255))
    assert find_input_format(network, [image[:20, :30] for image in photographs]).input_range == 255


def test_networks_of_spandrel_keep_their_convention_where_nothing_fits(photographs):
    require_spandrel()
    kind = importlib.import_module("spandrel.architectures.Compact").Compact
    module = kind(num_feat=4, num_conv=1, upscale=2).eval()
    with torch.no_grad():
        module.body[-1].bias.fill_(9e4)
    network = foreign_network(module, builder="spandrel.architectures.Compact:Compact")
    same, told = settle_input_format(network, {}, photographs)
    assert same is network
    assert told.startswith("input taken as 0..1 rgb, as spandrel does, though nothing resembles the images: ")


@pytest.mark.parametrize(("file", "name"), [("rlfn_s_x4.pth", "RLFN"), ("RFDN_AIM.pth", "RFDN")])
def test_public_networks_on_grey_levels_are_told(file, name, weights_root, photographs):
    path = weights_root / "public" / file
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    network = load_network(path, network=f"tests.public_networks:{name}")
    found = find_input_format(network, photographs[:1])
    assert (found.input_range, found.channel_order) == (255, "rgb")
