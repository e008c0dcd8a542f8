"""What becomes of drawings that photographs do not resemble."""

from __future__ import annotations

import pytest
import torch

from odm_deploy.errors import InputError
from odm_deploy.quantization.colour_areas import CORNER_COLOURS
from odm_deploy.tuning.drawings import compare_drawings


def enlarged(image):
    return image.repeat_interleave(2, 2).repeat_interleave(2, 3)


def without_green(image):
    """Takes 9 of green where there is nothing else."""
    only_green = (image[:, 1] == 255) & (image[:, 0] + image[:, 2] == 0)
    image = image.clone()
    image[:, 1] -= 9 * only_green
    return enlarged(image)


def failing(image):
    raise InputError("no picture of it")


def never(text):
    raise AssertionError(text)


def test_the_change_of_each_colour_is_that_of_its_area():
    costs = compare_drawings(enlarged, without_green, 48, 64, never)
    assert costs.lettering is not None
    assert costs.lettering.largest == 0
    assert costs.areas is not None
    assert [area.name for area in costs.areas] == list(CORNER_COLOURS)
    assert {area.name: area.change for area in costs.areas if area.largest} == {"green": (0.0, -9.0, 0.0)}


def test_what_the_float_network_makes_of_noise_is_told_apart():
    def amplifying(image):
        return enlarged(image + 40.0 * (image - image.round()).abs())

    for network, is_unstable in ((enlarged, False), (amplifying, True)):
        costs = compare_drawings(network, network, 48, 64, never)
        assert costs.lettering is not None
        assert costs.lettering.largest == 0
        assert costs.float_alone is not None
        assert (costs.float_alone.psnr_db < 35) is is_unstable
        assert costs.float_alone.largest >= 0.49
        assert costs.areas is not None
        black = costs.areas[0]
        assert black.largest == 0
        # An eighth of a step is the mean of such noise where it may not go below black.
        assert (4.5 < black.float_alone < 5.5) if is_unstable else (0.1 < black.float_alone < 0.15)


def test_a_network_that_fails_on_noise_alone_is_compared_all_the_same():
    def whole(image):
        return enlarged(image) if torch.equal(image, image.round()) else enlarged(image) * torch.nan

    costs = compare_drawings(whole, whole, 48, 64, never)
    assert costs.lettering is not None
    assert costs.float_alone is None
    assert costs.areas is not None
    assert {area.float_alone for area in costs.areas} == {0.0}


def test_noise_stays_among_the_colours_that_there_are():
    costs = compare_drawings(lambda image: enlarged(image / 255).pow(2.2) * 255, enlarged, 48, 64, never)
    assert costs.lettering is not None
    assert costs.float_alone is not None


@pytest.mark.parametrize(
    ("network", "model", "said"),
    [
        (failing, enlarged, "not compared, since the float network gives no picture of it: no picture of it"),
        (enlarged, failing, "the quantized network gives no picture of it, and the float one does: no picture of it"),
        (enlarged, lambda image: enlarged(image) * torch.nan, "the output holds NaN"),
    ],
)
def test_what_has_no_picture_is_said_and_ends_nothing(network, model, said):
    lines = []
    costs = compare_drawings(network, model, 48, 64, lines.append)
    assert costs.lettering is None
    assert costs.areas is None
    assert len(lines) == 2
    for line, what in zip(lines, ("small lettering: ", "areas of one colour: "), strict=True):
        assert line.startswith(what)
        assert said in line
