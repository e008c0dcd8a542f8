"""A page is written from whatever was measured, and says what was not."""

from __future__ import annotations

from dataclasses import replace

import torch

from odm_deploy.bench.report import BenchReport, Measurement
from odm_deploy.grid import Grid
from odm_deploy.proof.parity_report import ParityReport
from odm_deploy.report.content import ReportContent, drop_in_words
from odm_deploy.report.layer_statistics import LayerStatistics
from odm_deploy.report.page import to_html, to_report_markdown
from odm_deploy.runtimes.base import RunTimes


def content(**fields):
    basic = {"title": "a < b", "facts": [("network", "<edsr>")], "parity": ParityReport({"runtime": "here"})}
    return ReportContent(**{**basic, "layers": [], "crops": [], **fields})


def test_a_report_of_almost_nothing_is_a_page():
    found = content(bench_note="Nobody timed it.", coverage_note="Nobody built it.")
    for text in (to_html(found), to_report_markdown(found)):
        assert "Nobody timed it." in text
        assert "Nobody built it." in text
    assert "<svg" not in to_html(found)


def test_names_are_text_not_markup():
    page = to_html(content())
    assert "a &lt; b" in page
    assert "<edsr>" not in page


def test_a_layer_of_zeros_that_its_grid_lacks_has_no_bar_and_no_figure():
    """Its mismatch is infinite."""
    layer = LayerStatistics("dead", Grid.free(-1.0, 1.0, 2), 4)
    layer.add(torch.zeros(4))
    found = content(layers=[layer])
    assert "| `dead` | w4a2 | - | 0% |  |" in to_report_markdown(found)
    page = to_html(found)
    assert "mismatch by layer" not in page
    assert "nan" not in page
    assert page.count("<svg") == 1


def test_behind_the_worst_five_layers_the_others_wait_for_a_click():
    layers = []
    for index in range(8):
        layer = LayerStatistics(f"layer{index}", Grid.free(-1.0, 1.0, 2 + index % 4), 4)
        layer.add(torch.linspace(-1.0, 1.0, 50 + index))
        layers.append(layer)
    page = to_html(content(layers=layers))
    # The bars of five and of all, and a distribution each.
    assert page.count("<svg") == 2 + 8
    worst = sorted(layers, key=lambda layer: -layer.mismatch)
    shown = page[page.index("Activations against") : page.index("<summary>3 more layers</summary>")]
    assert [name in shown for name in (layer.name for layer in worst)] == [True] * 5 + [False] * 3


def test_an_unsteady_speed_is_told_at_best_where_that_is_known():
    mine, twin = (Measurement.of("m", [RunTimes(ms) for ms in times], 1, 1) for times in ((50, 95, 96), (200,) * 3))
    unsteady = BenchReport("openvino", "CPU", (1, 3, 8, 8), mine, twin)
    speeds = [content(bench=bench).figures()[-1] for bench in (unsteady, replace(unsteady, speedup_at_best=3.994))]
    words = "that of the same network in float, on openvino"
    assert speeds == [("speed", "unsteady", words), ("speed", "3.99 times by the fastest runs", words)]


def test_drops_are_said_in_words():
    assert [drop_in_words(drop) for drop in (-0.2, 0.01, 0.1, 0.5)] == [
        "not visible", "not visible", "visible side by side", "visible",
    ]  # fmt: skip
