"""Charts are well-formed SVG that shows the numbers it was given."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from odm_deploy.grid import Grid
from odm_deploy.report.svg import Bar, bar_chart, distribution_chart, share_text


def with_class(svg, tag, name):
    return [element for element in ElementTree.fromstring(svg).iter(tag) if element.get("class") == name]


def test_bars_are_as_long_as_their_values():
    svg = bar_chart([Bar("a", 2.0, "two"), Bar("b", 1.0, "one"), Bar("c", 0.0, "none")], "lengths")
    widths = [float(bar.get("width")) for bar in with_class(svg, "rect", "bar")]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.1)
    assert widths[2] == 0


def test_bars_of_nothing_but_zeros_have_no_length():
    svg = bar_chart([Bar("a", 0.0, "0")], "zeros")
    assert [bar.get("width") for bar in with_class(svg, "rect", "bar")] == ["0.0"]


def test_names_cannot_break_out_of_the_markup():
    name = '<script>alert("x")</script>&'
    labels = with_class(bar_chart([Bar(name, 1.0, name)], name), "text", "label")
    assert [label.find("title").text for label in labels] == [name]


def levels_of(path):
    return [float(part.split(" ")[0]) for part in path.get("d").split("M")[1:]]


def test_levels_are_drawn_where_the_grid_has_them():
    grid = Grid.from_range(0.0, 3.0, 2)
    svg = distribution_chart(np.array([0.0, 6.0]), np.array([3.0, 1.0]), grid, "input")
    (path,) = with_class(svg, "path", "level")
    positions = levels_of(path)
    assert len(positions) == 4
    assert np.diff(positions) == pytest.approx(np.diff(positions)[0], abs=0.2)
    # The grid ends in the middle of the values, with as much margin on both sides.
    assert positions[-1] == pytest.approx(180, abs=4)


def test_what_lies_beyond_the_grid_is_shown_as_clipped_and_nothing_else():
    grid = Grid.from_range(0.0, 3.0, 2)
    inside = distribution_chart(np.array([0.0, 3.0]), np.array([1.0, 1.0]), grid, "input")
    assert with_class(inside, "path", "clipped")[0].get("d") == ""
    outside = distribution_chart(np.array([0.0, 9.0]), np.array([1.0, 1.0]), grid, "input")
    assert with_class(outside, "path", "clipped")[0].get("d").count("M") == 1
    assert with_class(outside, "path", "kept")[0].get("d").count("M") == 1


def test_levels_of_fine_grids_are_left_out():
    svg = distribution_chart(np.array([0.5]), np.array([1.0]), Grid.from_range(0.0, 1.0, 8), "input")
    assert with_class(svg, "path", "level") == []


@pytest.mark.parametrize(("value", "text"), [(0.0, "0%"), (0.0187, "1.87%"), (1.0, "100%"), (float("inf"), "-")])
def test_shares_read_well(value, text):
    assert share_text(value) == text
