"""`odm-deploy quantize` ends with what it cost, keeps goals or refuses, and trains on."""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from odm_deploy.checkpoint import load_model
from odm_deploy.imaging.writing import write_image
from odm_deploy.machine.host import adds_in_16_bits
from odm_deploy.quantization.colour_areas import CORNER_COLOURS
from tests.command_line import run_cli
from tests.inputs import edsr_weights, image_folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return edsr_weights(tmp_path_factory.mktemp("weights") / "edsr.pt")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Of high resolution."""
    return image_folder(tmp_path_factory.mktemp("images"), 6, 96, 96)


def quantize(weights, images, output, *more):
    return run_cli("quantize", weights, "--images", images, "-o", output, *more)


def test_every_run_ends_with_what_it_cost(weights, images, tmp_path):
    outcome = quantize(weights, images, tmp_path / "model.pt", "--bits", "2", "--no-fit")
    assert outcome.code == 0, outcome.stderr
    assert "cost, on 1 image: " in outcome.stderr
    assert "dB between float and quantized output" in outcome.stderr
    assert "against the originals" in outcome.stderr
    assert re.search(r"small lettering: [\d.]+ dB, a value is \d+ of 255 off", outcome.stderr)
    assert re.search(r"areas of one colour(: at most|, of 255 off: \w+) [\d.]+", outcome.stderr)
    assert "most of it: body." in outcome.stderr
    assert re.search(r"to lose less: --(max-drop 0\.03|min-psnr 45) finds", outcome.stderr)
    assert "=8;" in outcome.stderr


@pytest.mark.parametrize("output", ["bundle/model.pt", "bundle"])
def test_a_model_that_its_bundle_would_replace_is_refused_before_any_work(weights, images, tmp_path, output):
    outcome = quantize(weights, images, tmp_path / output, "--export", tmp_path / "bundle")
    assert outcome.code == 2
    assert "a bundle is replaced as a whole; name the model outside of it: -o model.pt" in outcome.stderr
    assert "calibrating" not in outcome.stderr
    assert not (tmp_path / "bundle").exists()


def test_weights_in_a_folder_that_the_bundle_would_replace_are_kept(weights, images, tmp_path):
    # All that bundles hold has these names, so the folder could be one.
    (tmp_path / "manifest.json").write_text("{}")
    mine = tmp_path / "model.onnx"
    shutil.copy(weights, mine)
    outcome = quantize(mine, images, tmp_path.parent / "model.pt", "--export", tmp_path)
    assert outcome.code == 2
    assert f"it is replaced as a whole, and {mine}, the input, lies in it" in outcome.stderr
    assert "calibrating" not in outcome.stderr
    assert mine.exists()


@pytest.mark.parametrize("more", [(), ("--bits", "4"), ("--any-cpu",)])
def test_models_that_are_slow_on_this_cpu_are_said_to_be(weights, images, tmp_path, more):
    outcome = quantize(weights, images, tmp_path / "model.pt", "--no-fit", "--crop", "24", "--max-images", "1", *more)
    assert outcome.code == 0, outcome.stderr
    assert ("those of --any-cpu are faster" in outcome.stderr) is (bool(adds_in_16_bits()) and not more)


def test_images_that_shrink_to_little_are_named_as_what_may_be_inputs(weights, tmp_path):
    small = image_folder(tmp_path / "small", 2, 40, 48)
    told = {
        name: quantize(weights, small, tmp_path / "model.pt", "--no-fit", *more).stderr
        for name, more in {"shrunk": (), "as they are": ("--lr",), "as asked for": ("--crop", "16")}.items()
    }
    assert [name for name, text in told.items() if "small images" in text] == ["shrunk"]
    assert "shrunk by 2, none is more than 20 pixels high and wide; take larger ones, or --lr" in told["shrunk"]
    assert all(
        "(seen in calibration, too; of five images or more, some are held back)" in text for text in told.values()
    )


@pytest.mark.parametrize("size", [(2, 48), (48, 4), (1, 1)])
def test_an_image_of_which_too_little_is_left_is_named_before_any_work(size, weights, images, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    write_image(folder / "tiny.png", np.full((*size, 3), 100, np.uint8))
    outcome = quantize(weights, folder, tmp_path / "model.pt", "--no-fit")
    assert outcome.code == 1
    last = outcome.stderr.strip().splitlines()[-1]
    assert f"cannot calibrate on {folder / 'tiny.png'}" in last
    assert "use larger images" in last
    assert "calibrating" not in outcome.stderr
    assert not (tmp_path / "model.pt").exists()


def test_where_one_image_is_held_back_the_worst_of_the_others_is_named(weights, images, tmp_path):
    """Noise, on which the network does something else, was seen in calibration."""
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    first = min(folder.iterdir())
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    write_image(folder / "a_night.png", noise)
    first.unlink()
    outcome = quantize(weights, folder, tmp_path / "model.pt", "--bits", "3", "--lr", "--json")
    assert outcome.code == 0, outcome.stderr
    cost = outcome.document["cost"]
    assert cost["images"] == 1
    assert cost["worst"]["seen"]
    assert cost["worst"]["image"] == "a_night.png"
    assert f"({cost['worst']['psnr_db']:.1f} on a_night.png, seen in calibration)" in outcome.stderr


def test_it_says_what_it_does_from_the_beginning(weights, images, tmp_path, monkeypatch):
    told = list[str]()

    @contextmanager
    def progress(description):
        def track(items, total, stage=description):
            told.append(stage)
            yield from items

        yield track

    monkeypatch.setattr("odm_deploy.cli.quantize.progress", progress)
    assert quantize(weights, images, tmp_path / "model.pt", "--no-fit").code == 0
    assert told[:2] == [f"loading {weights.name}", "trying sizes of images"]
    assert told[2] == "float pictures to compare with"
    assert "calibrating" in told


def test_what_nobody_named_is_not_replaced(weights, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = ("quantize", weights, "--images", images, "--lr", "--no-fit")
    first = run_cli(*call)
    assert first.code == 0, first.stderr
    made = (tmp_path / "model.pt").read_bytes()
    second = run_cli(*call, "--bits", "4")
    assert second.code == 2
    assert second.stderr.splitlines() == [
        "error: model.pt is there already; name the result: -o other.pt, or -o model.pt to replace it"
    ]
    assert (tmp_path / "model.pt").read_bytes() == made
    assert run_cli(*call, "--bits", "4", "-o", "model.pt").code == 0
    assert (tmp_path / "model.pt").read_bytes() != made


def test_a_file_that_is_no_model_is_not_replaced_by_one(weights, images, tmp_path):
    photo = tmp_path / "photo.png"
    shutil.copy(next(images.iterdir()), photo)
    before = photo.read_bytes()
    outcome = quantize(weights, images, photo, "--no-fit")
    assert outcome.code == 2
    assert f"cannot write {photo}: a file is there that is no model.pt, and would be lost" in outcome.stderr
    assert photo.read_bytes() == before


TALKING = """
from torch import nn
class Talking(nn.Sequential):
    def __init__(self):
        super().__init__(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))
    def forward(self, x):
        print("seen", x.shape)
        return x + 0.01 * super().forward(x)
"""


def test_what_a_network_prints_is_not_among_the_json(images, tmp_path, monkeypatch):
    (tmp_path / "talking.py").write_text(TALKING)
    monkeypatch.syspath_prepend(tmp_path)
    layers = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))
    torch.save(layers.state_dict(), tmp_path / "w.pth")
    more = ("--network", "talking:Talking", "--set", "input_range=1", "--lr", "--no-fit", "--max-images", "1", "--json")
    outcome = quantize(tmp_path / "w.pth", images, tmp_path / "model.pt", *more)
    assert outcome.code == 0, outcome.stderr
    assert outcome.document["model"] == str(tmp_path / "model.pt")
    assert "seen torch.Size([1, 3, " in outcome.stderr


def test_json_has_the_same(weights, images, tmp_path):
    outcome = quantize(weights, images, tmp_path / "model.pt", "--lr", "--json")
    document = outcome.document
    assert document["images"] == 5
    assert document["cost"]["images"] == 1
    assert document["cost"]["psnr_db"] > 30
    assert document["cost"]["drop_db"] is None
    assert document["lettering"]["images"] == 1
    assert document["lettering"]["drop_db"] is None
    assert [area["colour"] for area in document["colours"]] == list(CORNER_COLOURS)
    assert all(len(area["change"]) == 3 for area in document["colours"])
    assert [each["name"] for each in document["sensitivity"]] == [each["name"] for each in document["layers"]]
    assert document["mixed_widths"] is None
    assert document["fine_tuning"] is None


class ByContrast(nn.Sequential):
    """Gives NaN for images that hold black and white alone."""

    def __init__(self):
        super().__init__(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))

    def forward(self, x):
        between = ((x > 0.01) & (x < 0.99)).float().mean()
        return x + 0.01 * super().forward(x) * (between / between)


def test_a_network_that_gives_no_picture_of_lettering_ends_as_others_do(images, tmp_path):
    torch.save(ByContrast().state_dict(), tmp_path / "w.pth")
    network = ("--network", f"{__name__}:ByContrast", "--set", "input_range=1")
    call = (*network, "--no-fit", "--export", tmp_path / "bundle", "--no-engine", "--json")
    outcome = quantize(tmp_path / "w.pth", images, tmp_path / "model.pt", *call)
    assert outcome.code == 0, outcome.stderr
    assert "not compared, since the float network gives no picture of it: the output holds NaN" in outcome.stderr
    assert "cost, on 1 image: " in outcome.stderr
    assert outcome.document["lettering"] is None
    assert outcome.document["colours"] is None
    assert (tmp_path / "bundle" / "manifest.json").exists()


def test_layers_that_cost_most_stay_float_up_to_a_share_of_the_work(weights, images, tmp_path):
    """Ranges that cut a fifth off the inputs cost what nobody wants to lose."""
    common = ("--head", "8", "--body-end", "8", "--tail", "8", "--lr", "--percentile", "80", "--json")
    without = quantize(weights, images, tmp_path / "none.pt", *common, "--most-float", "0")
    assert "by hand, --layer" in without.stderr
    none = without.document
    assert none["mixed_widths"] is None
    assert none["cost"]["psnr_db"] < 50
    outcome = quantize(weights, images, tmp_path / "some.pt", *common, "--most-float", "60")
    mixed = outcome.document["mixed_widths"]
    assert mixed["in_float"]
    assert mixed["quantized_macs_before"] - mixed["quantized_macs"] <= 0.6
    assert outcome.document["cost"]["psnr_db"] > none["cost"]["psnr_db"]
    assert mixed["in_float"][0] in outcome.stderr
    # With --layer, those that were left float would be quantized again.
    assert "to lose less" in outcome.stderr
    assert "--layer" not in outcome.stderr


def test_a_goal_is_kept_by_widening_the_layers_that_need_it(weights, images, tmp_path):
    options = ("--bits", "3", "--profile", "paper", "--json")
    plain = quantize(weights, images, tmp_path / "plain.pt", *options).document
    wanted = plain["cost"]["psnr_db"] + 2
    outcome = quantize(weights, images, tmp_path / "model.pt", *options, "--min-psnr", wanted)
    assert outcome.code == 0, outcome.stderr
    document = outcome.document
    assert document["cost"]["psnr_db"] >= wanted
    mixed = document["mixed_widths"]
    # Before, layers were fitted each for itself, which costs a little.
    assert mixed["before"]["psnr_db"] == pytest.approx(plain["cost"]["psnr_db"], abs=1.0)
    assert mixed["before"]["psnr_db"] < wanted
    assert mixed["widened"]
    assert "at 8 bits (" in outcome.stderr
    saved = load_model(tmp_path / "model.pt").layers
    assert {name for name, layer in saved.items() if layer.grid.bits == 8} == set(mixed["widened"])
    assert {each["name"]: each["bits"] for each in document["layers"]} == {
        name: layer.grid.bits for name, layer in saved.items()
    }


def test_a_goal_that_cannot_be_kept_leaves_nothing(weights, images, tmp_path):
    outcome = quantize(weights, images, tmp_path / "model.pt", "--min-psnr", "200")
    assert outcome.code == 3
    assert "(required: 200 dB)" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_goal_on_the_truth_needs_a_truth(weights, images, tmp_path):
    outcome = quantize(weights, images, tmp_path / "model.pt", "--lr", "--max-drop", "0.1")
    assert outcome.code == 2
    # Images of high resolution would not help a network that does not enlarge.
    assert "use --min-psnr; with a network that enlarges" in outcome.stderr
    # Said at once, not after the minutes that calibration takes.
    assert "calibrating" not in outcome.stderr
    assert quantize(weights, images, tmp_path / "model.pt", "--finetune", "0").code == 2
    assert list(tmp_path.iterdir()) == []


def test_training_on_is_one_option(weights, images, tmp_path):
    outcome = quantize(weights, images, tmp_path / "model.pt", "--bits", "3", "--finetune", "0.03", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.document["fine_tuning"]["steps"] >= 1
    assert "dB between float and quantized output" in outcome.stderr
    assert load_model(tmp_path / "model.pt").metadata.get("fine_tuning_steps", 0) in (
        0,
        outcome.document["fine_tuning"]["steps"],
    )


def test_the_fastest_profile_that_keeps_the_goal_is_taken_and_said(weights, images, tmp_path):
    psnr = [
        quantize(weights, images, tmp_path / "named.pt", "--profile", name, "--most-float", "0", "--json").document[
            "cost"
        ]["psnr_db"]
        for name in ("integer", "deploy")
    ]
    assert psnr[0] < psnr[1]
    for goal, profile in ((psnr[0] - 0.1, "integer"), (sum(psnr) / 2, "deploy")):
        outcome = quantize(weights, images, tmp_path / "model.pt", "--profile", "fastest", "--min-psnr", goal, "--json")
        assert outcome.code == 0, outcome.stderr
        assert outcome.document["profile"] == profile
        assert f"profile {profile} is taken, since " in outcome.stderr
        model = load_model(tmp_path / "model.pt")
        assert (bool(model.signals), model.metadata["profile"]) == (profile == "integer", profile)
        assert "tail.1" in model.layers
