"""Shape profiles: named, written out, and fitted to graph inputs of either layout."""

from __future__ import annotations

import pytest

from odm_deploy.errors import BuildError, UsageError
from odm_deploy.graphs.input_shapes import PRESETS, InputShapes, parse_shapes


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_being_written_out(name):
    assert parse_shapes(str(PRESETS[name])) == parse_shapes(name) == PRESETS[name]


def test_presets_are_tuned_for_what_they_are_named_after():
    assert PRESETS["1080p"].opt == (1, 3, 1080, 1920)
    assert PRESETS["540p"].max == (1, 3, 540, 960)
    assert PRESETS["720p"].min == (1, 3, 16, 16)


def test_one_shape_is_a_static_profile():
    assert parse_shapes("1x3x270x480") == InputShapes.static(1, 270, 480)


@pytest.mark.parametrize(
    "text", ["", "4k", "1x3x64", "1x3x0x64", "1x3x64x64:1x3x32x32", "1x3x64x64:1x3x32x32:1x3x64x64", "-1x3x8x8"]
)
def test_nonsense_is_a_usage_error(text):
    with pytest.raises(UsageError):
        parse_shapes(text)


def test_small_frames_stay_in_order():
    assert InputShapes.up_to(8, 100).min == (1, 3, 8, 16)


def test_nchw_input_takes_the_profile_as_it_is():
    profile = PRESETS["tile"]
    assert profile.for_input((-1, 3, -1, -1)) == (profile.min, profile.opt, profile.max)


def test_nhwc_input_is_recognized_by_its_last_dimension():
    assert InputShapes.static(2, 32, 48).for_input((-1, -1, -1, 3))[1] == (2, 32, 48, 3)


def test_fixed_dimensions_of_the_graph_win():
    assert InputShapes.static(1, 32, 48).for_input((4, 16, 64, -1)) == ((4, 16, 64, 48),) * 3


def test_fixed_inputs_of_any_rank_are_taken_as_they_are():
    assert PRESETS["tile"].for_input((1, 64, 60), "tokens") == ((1, 64, 60),) * 3


def test_input_that_is_no_batch_of_images_is_refused():
    with pytest.raises(BuildError, match="2 dimensions"):
        PRESETS["tile"].for_input((-1, 10), "tokens")
