"""A page is written from whatever was measured, and says what was not."""

from __future__ import annotations

import torch

from odm_deploy.grid import Grid
from odm_deploy.proof.parity_report import ParityReport
from odm_deploy.report.content import ReportContent
from odm_deploy.report.layer_statistics import LayerStatistics
from odm_deploy.report.page import to_html, to_report_markdown


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
