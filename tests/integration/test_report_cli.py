"""`odm-deploy report`: one page that stands alone, written whatever the verdict."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import onnx
import pytest
import torch
from onnx import numpy_helper

from odm_deploy.installing import install_extra
from tests.command_line import run_cli
from tests.factories import tiny_network


class Page(HTMLParser):
    """What a page refers to and shows."""

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def float_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "edsr.pt"
    torch.save(tiny_network().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def written(tiny_bundle, tiny_set, float_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    images = tiny_set / "LR_bicubic" / "X2"
    outcome = run_cli(
        "report", tiny_bundle, "--images", images, "--float", float_weights, "-o", folder / "report.html",
        "--markdown", folder / "report.md", "--no-bench", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    assert outcome.document["passed"] is True
    return folder


def test_the_page_stands_alone(written):
    text = (written / "report.html").read_text()
    page = Page(text)
    assert page.references
    assert all(reference.startswith("data:") for reference in page.references)
    assert not {"script", "iframe", "object"} & set(page.tags)
    assert "url(" not in text


def test_the_page_shows_everything_that_was_asked_for(written, tiny_checkpoint):
    page = Page((written / "report.html").read_text())
    for expected in (
        "computes the reference", "noise floor", "Mismatch of the activations", "Distance of the weights",
        "Activations against their grids", "Not measured (--no-bench)", "the bundle has no engine", "body.0.body.0",
    ):  # fmt: skip
        assert expected in page.text, expected
    # Two images: input, bicubic, float, quantized, ground truth and difference each.
    assert page.tags.count("img") == 12
    # Two charts of the worst layers, which are all of them here, and one for each layer.
    assert page.tags.count("svg") == 2 + 5


def test_the_page_says_first_what_it_means(written):
    text = (written / "report.html").read_text()
    assert text.index("The noise floor is how far") < text.index("<table")
    assert text.index("Mismatch of the activations") < text.index("<svg")
    figures = text[text.index('class="figures"') : text.index("</dl>")]
    assert re.search(r"<b>identical</b><br>bit for bit|<b>[\d.]+ dB apart</b><br>(invisible|hardly visible)", figures)
    assert re.search(r"dB PSNR-Y</b><br>not visible: -?0\.0\d dB less than the reference", figures)
    assert not re.search(r"[0-9a-f]{20}", Page(text).text), "a whole hash"
    # One image at once; the other behind a click.
    before, _, after = text.partition("<summary>1 more</summary>")
    assert before.count("<img") == after.count("<img") == 6


def test_a_quick_report_leaves_the_layers_proof_out(tiny_bundle, tiny_set, tmp_path):
    page = tmp_path / "report.html"
    outcome = run_cli(
        "report", tiny_bundle, "--images", tiny_set / "LR_bicubic/X2", "-o", page, "--quick", "--no-bench"
    )
    assert outcome.code == 0, outcome.stderr
    text = Page(page.read_text()).text
    assert "Agreement layer by layer" not in text
    assert "2 images." in text


def test_markdown_holds_the_same_figures(written):
    text = (written / "report.md").read_text()
    assert "computes the reference" in text
    assert len(re.findall(r"^\| `body\S+` \| w8a8 \| \S+% \| \S+% \| \S+% \|$", text, re.MULTILINE)) == 5


def test_latency_beside_the_float_twin(tiny_bundle, tiny_set, tmp_path):
    page = tmp_path / "report.html"
    outcome = run_cli(
        "report", tiny_bundle, "--images", tiny_set / "LR_bicubic/X2/0x2.png", "-o", page, "--crops", 0,
        "--runtime", "onnxruntime", "--seconds", 0.5,
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    text = Page(page.read_text()).text
    # What a busy machine shows is called unsteady.
    assert "times as fast as the same network in float" in text or "unsteady, also when timed again" in text
    assert "float twin (fp32)" in text


def test_a_wrong_model_is_shown_and_ends_with_3(tiny_bundle, tiny_checkpoint, tiny_set, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    graph = onnx.load(bundle / "model.onnx")
    weight = next(tensor for tensor in graph.graph.initializer if len(tensor.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) // 2, weight.name))
    onnx.save(graph, bundle / "model.onnx")
    page = tmp_path / "report.html"
    outcome = run_cli("report", bundle, "--images", tiny_set / "LR_bicubic/X2", "-o", page, "--no-bench")
    assert outcome.code == 3, outcome.stderr
    assert "does NOT compute the reference" in Page(page.read_text()).text
    # A quick look says no only after the layers were compared, too: a rounding tie on a small image is none.
    quick = run_cli("report", bundle, "--images", tiny_set / "LR_bicubic/X2", "-o", page, "--no-bench", "--quick")
    assert quick.code == 3, quick.stderr
    assert "comparing layer by layer" in quick.stderr
    assert "Agreement layer by layer" in Page(page.read_text()).text


def test_bad_calls_end_before_any_work(tiny_bundle, tiny_set, tmp_path):
    outcome = run_cli("report", tiny_bundle, "--images", tiny_set, "-o", tmp_path / "report.pdf")
    assert outcome.code == 2
    assert "report.pdf" in outcome.stderr
    one = tmp_path / "report.html"
    outcome = run_cli("report", tiny_bundle, "--images", tiny_set, "-o", one, "--markdown", tmp_path / "." / one.name)
    assert outcome.code == 2
    assert "named twice" in outcome.stderr
    torch.save({"head.0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    outcome = run_cli(
        "report", tiny_bundle, "--images", tiny_set / "LR_bicubic/X2", "-o", tmp_path / "report.html",
        "--float", tmp_path / "other.pt",
    )  # fmt: skip
    assert outcome.code == 1
    assert not (tmp_path / "report.html").exists()


def test_markdown_replaces_no_file_of_another_kind(tiny_bundle, tiny_set, tmp_path):
    for verb in (("verify",), ("report", "-o", tmp_path / "page.html")):
        other = tmp_path / "photo.png"
        other.write_bytes(b"mine")
        outcome = run_cli(verb[0], tiny_bundle, "--images", tiny_set, *verb[1:], "--markdown", other)
        assert outcome.code == 2
        assert f"cannot write {other}: a file is there that does not end in .md or .markdown or .txt" in outcome.stderr
        assert other.read_bytes() == b"mine"
        assert not (tmp_path / "page.html").exists()


def test_without_jinja2_the_line_says_what_to_install(tiny_bundle, tiny_set, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    outcome = run_cli("report", tiny_bundle, "--images", tiny_set / "LR_bicubic/X2", "-o", tmp_path / "report.html")
    assert outcome.code == 4
    assert install_extra("report") in outcome.stderr


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here to look at the page with")
def test_a_browser_lays_the_page_out_within_a_phone(written, tmp_path):
    """Nothing is wider than 390 px: a page that scrolls sideways cannot be read on a phone."""
    page = (written / "report.html").as_uri()
    probe = tmp_path / "probe.html"
    probe.write_text(
        f'<iframe id="f" src="{page}" style="width:390px;height:800px;border:0"></iframe><p id="out"></p><script>'
        "f.onload = () => { const root = f.contentDocument.documentElement;"
        'out.textContent = "width " + root.scrollWidth + " pictures " + '
        "[...f.contentDocument.images].filter(i => i.naturalWidth).length }</script>"
    )
    dom = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000",
            "--dump-dom", probe.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    found = re.search(r"width (\d+) pictures (\d+)", dom)
    assert found is not None, dom[-500:]
    assert int(found[1]) <= 390
    assert int(found[2]) == 12
