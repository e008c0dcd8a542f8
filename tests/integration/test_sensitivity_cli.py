"""`odm-deploy sensitivity`: a table, a plot and JSON, of weights and of models."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from tests.command_line import run_cli
from tests.inputs import edsr_weights, image_folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return edsr_weights(tmp_path_factory.mktemp("weights") / "edsr.pt")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), 2, 96, 96)


COARSE = ("--bits", "8", "--layer", "body.1.body.2=2", "--profile", "paper")


def test_weights_are_quantized_and_their_layers_ranked(weights, images, tmp_path):
    outcome = run_cli("sensitivity", weights, "--images", images, *COARSE, "--plot", tmp_path / "layers.svg")
    assert outcome.code == 0, outcome.stderr
    rows = [line.split() for line in outcome.stdout.splitlines() if " body." in line]
    assert len(rows) == 4
    assert rows[0][1:4:2] == ["body.1.body.2", "w2a2"]
    drawing = ElementTree.parse(tmp_path / "layers.svg").getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    bars = drawing.findall("{http://www.w3.org/2000/svg}rect")
    # In network order, and the coarse layer's is the longest.
    assert max(range(4), key=lambda index: float(bars[index].get("width") or 0)) == 3


def test_a_model_is_compared_with_its_weights_or_with_its_own_codes(weights, images, tmp_path):
    model = tmp_path / "model.pt"
    assert run_cli("quantize", weights, "--images", images, "-o", model, *COARSE).code == 0
    call = ("sensitivity", model, "--images", images, "--json")
    compared = run_cli(*call, "--against", weights)
    alone = run_cli(*call)
    assert (compared.code, alone.code) == (0, 0), compared.stderr + alone.stderr
    assert "--against WEIGHTS has all" in alone.stderr
    found, inputs_only = (
        {each["name"]: each["mse"] for each in outcome.document["layers"]} for outcome in (compared, alone)
    )
    assert max(found, key=lambda name: found[name]) == "body.1.body.2"
    assert list(found) == list(inputs_only)
    # Two bits of weights cost something of their own.
    assert 0 < inputs_only["body.1.body.2"] < found["body.1.body.2"]


def test_options_that_say_nothing_about_the_file_are_refused(weights, images, tmp_path):
    model = tmp_path / "model.pt"
    assert run_cli("quantize", weights, "--images", images, "-o", model, *COARSE).code == 0
    call = ("sensitivity", model, "--images", images)
    outcome = run_cli(*call, "--bits", 4, "--set", "input_range=255", "--max-images", 1)
    assert outcome.code == 2
    assert re.search(r"(--set, --bits|--bits, --set) with .*model\.pt: it is quantized already", outcome.stderr)
    outcome = run_cli("sensitivity", weights, "--images", images, "--against", weights)
    assert outcome.code == 2
    assert f"--against with {weights}: it holds float weights itself" in outcome.stderr


def test_what_cannot_be_drawn_or_measured_is_refused(weights, images, tmp_path):
    outcome = run_cli("sensitivity", weights, "--images", images, "--plot", tmp_path / "layers.png")
    assert (outcome.code, "end its name in .svg" in outcome.stderr) == (2, True)
    assert run_cli("sensitivity", weights, "--images", tmp_path / "none").code == 1
    assert list(tmp_path.iterdir()) == []
