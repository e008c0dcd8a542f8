"""`odm-deploy upscale`: the network's own pixels, with and without tiles, alpha and gray kept."""

from __future__ import annotations

import numpy as np
import pytest

from odm_deploy.checkpoint import save_model
from odm_deploy.imaging.io import Image, read_image, write_image
from odm_deploy.proof.parity import to_pixels
from odm_deploy.runtimes.torch_reference import TorchReference
from tests.command_line import run_cli
from tests.factories import exact_model, random_images


@pytest.fixture(scope="module")
def exact_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    save_model(exact_model(), folder / "model.pt")
    assert run_cli("export", folder / "model.pt", "-o", folder / "bundle", "--no-engine").code == 0
    return folder / "bundle"


def rgb(height, width, seed=0):
    return random_images(height, width, seed=seed)[0].transpose(1, 2, 0).astype(np.uint8)


def expected(image):
    return to_pixels(TorchReference(exact_model()).upscale(image.transpose(2, 0, 1)[None].astype(np.float32)))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("tile", [0, 24])
def test_pixels_are_the_references_and_tiles_leave_no_seam(exact_bundle, tmp_path, runtime, tile):
    image = rgb(37, 61)
    write_image(tmp_path / "in.png", image)
    options = ("--model", exact_bundle, "--runtime", runtime, "--tile", tile, "--json")
    outcome = run_cli("upscale", tmp_path / "in.png", tmp_path / "out.png", *options)
    assert outcome.code == 0, outcome.stderr
    np.testing.assert_array_equal(read_image(tmp_path / "out.png").rgb, expected(image))
    document = outcome.document
    assert (document["size"], document["tile"]) == ([122, 74], tile)
    assert document["runtime"]["runtime"] == runtime


def test_alpha_and_gray_go_through_the_same_network(exact_bundle, tmp_path):
    image, alpha = rgb(12, 15), rgb(12, 15, seed=5)[..., 0]
    write_image(tmp_path / "alpha.png", Image(image, alpha, False, None))
    write_image(tmp_path / "gray.png", rgb(12, 15)[..., 1])
    for name in ("alpha", "gray"):
        outcome = run_cli("upscale", tmp_path / f"{name}.png", tmp_path / f"{name}2.png", "--model", exact_bundle)
        assert outcome.code == 0, outcome.stderr
        assert "30x24" in outcome.stderr
        assert outcome.stdout == ""
    found = read_image(tmp_path / "alpha2.png")
    np.testing.assert_array_equal(found.rgb, expected(image))
    np.testing.assert_array_equal(found.alpha, expected(np.repeat(alpha[..., None], 3, 2))[..., 1])
    # These weights tint gray images, so the result has colours and keeps them.
    gray = np.repeat(rgb(12, 15)[..., 1:2], 3, 2)
    np.testing.assert_array_equal(read_image(tmp_path / "gray2.png").rgb, expected(gray))


def test_destination_is_checked_before_any_work(exact_bundle, tmp_path):
    write_image(tmp_path / "in.png", rgb(8, 8))
    outcome = run_cli("upscale", tmp_path / "in.png", tmp_path / "out.bmpx", "--model", exact_bundle)
    assert outcome.code in (1, 2)
    assert "out.bmpx" in outcome.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png"]
