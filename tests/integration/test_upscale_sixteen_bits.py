"""`odm-deploy upscale` on 16-bit PNG files: 16 bits in, 16 bits out, and a word where that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from odm_deploy.checkpoint import save_model
from odm_deploy.engine import Engine
from odm_deploy.errors import UsageError
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.reading import read_image, read_rgb
from odm_deploy.imaging.tile_size import Tiles
from odm_deploy.imaging.writing import write_image
from odm_deploy.proof.reference import TorchReference
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import open_runtime
from tests.command_line import run_cli
from tests.factories import exact_model, random_images
from tests.png_files import ffmpeg_png, ffmpeg_samples

ONE_THREAD = RuntimeOptions(threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sixteen")
    save_model(exact_model(), folder / "model.pt")
    for name, options in (("float", ()), ("uint8", ("--io", "uint8"))):
        assert run_cli("export", folder / "model.pt", "-o", folder / name, "--no-engine", *options).code == 0
    return folder


def gradient(height: int = 37, width: int = 61) -> np.ndarray:
    """uint16 [H, W, 3]: slow ramps, whose steps 8 bits cannot show."""
    y, x = np.mgrid[:height, :width]
    return np.stack([20000 + 97 * x, 30000 + 61 * y, 9000 + 13 * (x + y)], axis=2).astype(np.uint16)


def expected(samples: np.ndarray) -> np.ndarray:
    """The reference's float output for uint16 [H, W, C], rounded to steps of 1/65535 of white."""
    values = (samples.astype(np.float64) / 65535 * 255).astype(np.float32)
    output = TorchReference(exact_model()).upscale(np.ascontiguousarray(values.transpose(2, 0, 1)[None]))
    return np.rint(np.clip(output[0] * np.float32(257), 0, 65535)).astype(np.uint16).transpose(1, 2, 0)


def upscale(source: Path, destination: Path, bundle: Path, *options: object):
    return run_cli("upscale", source, destination, "--model", bundle, "--threads", 1, *options)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("tile", [0, 24])
def test_results_are_the_floats_of_the_network_rounded(folder, tmp_path, runtime, tile):
    ffmpeg_png(tmp_path / "in.png", gradient())
    outcome = upscale(
        tmp_path / "in.png", tmp_path / "out.png", folder / "float", "--runtime", runtime, "--tile", tile, "--json"
    )
    assert outcome.code == 0, outcome.stderr
    assert outcome.document["bits"] == 16
    found = ffmpeg_samples(tmp_path / "out.png")
    np.testing.assert_array_equal(found, expected(gradient()))
    assert len(np.unique(found[..., 0])) > 256, "8 bits would have been enough for this image"


def test_blended_tiles_keep_16_bits(folder):
    with open_runtime(folder / "float", "onnxruntime", ONE_THREAD) as runtime:
        whole = Engine(runtime).upscale(gradient(130, 40), bits=16)
        unbounded = Engine(runtime, tiles=Tiles(2, radius_px=None))
        # The network looks less far than what strips throw away: blending changes nothing.
        np.testing.assert_array_equal(unbounded.upscale(gradient(130, 40), tile=96, bits=16), whole)


def test_the_lower_byte_reaches_the_network(folder):
    deep = gradient()
    with Engine.open(folder / "float", "onnxruntime", ONE_THREAD) as engine:
        assert (engine.upscale(deep) != engine.upscale((deep >> 8).astype(np.uint8))).any()
        levels = deep // 257
        np.testing.assert_array_equal(engine.upscale(levels * 257), engine.upscale(levels.astype(np.uint8)))


@pytest.mark.parametrize("tile", [0, 24])
def test_alpha_and_gray_have_16_bits_too(folder, tmp_path, tile):
    rgb, alpha = gradient(30, 40), gradient(30, 40)[::-1, :, 0].copy()
    gray = np.repeat(rgb[..., :1], 3, 2)
    write_image(tmp_path / "alpha.png", Image(rgb, alpha))
    write_image(tmp_path / "gray.png", rgb[..., 0])
    for name in ("alpha", "gray"):
        outcome = upscale(
            tmp_path / f"{name}.png",
            tmp_path / f"{name}2.png",
            folder / "float",
            "--tile",
            tile,
            "--runtime",
            "onnxruntime",
        )
        assert outcome.code == 0, outcome.stderr
    transparency = expected(np.repeat(alpha[..., None], 3, 2))[..., 1]
    np.testing.assert_array_equal(ffmpeg_samples(tmp_path / "alpha2.png"), np.dstack([expected(rgb), transparency]))
    np.testing.assert_array_equal(ffmpeg_samples(tmp_path / "gray2.png"), expected(gray))


def test_depth_is_the_users_choice(folder, tmp_path):
    write_image(tmp_path / "deep.png", gradient())
    plain = random_images(20, 24)[0].transpose(1, 2, 0).astype(np.uint8)
    write_image(tmp_path / "plain.png", plain)
    assert upscale(tmp_path / "deep.png", tmp_path / "8.png", folder / "float", "--depth", 8).code == 0
    eight = read_image(tmp_path / "8.png", max_bits=16)
    # Computed from all 16 bits, rounded at the very end; a half may lie between the two roundings.
    assert eight.bits == 8
    assert np.abs(eight.rgb * 257.0 - expected(gradient())).max() <= 129
    assert upscale(tmp_path / "plain.png", tmp_path / "16.png", folder / "float", "--depth", 16).code == 0
    np.testing.assert_array_equal(ffmpeg_samples(tmp_path / "16.png"), expected(plain.astype(np.uint16) * 257))
    assert upscale(tmp_path / "plain.png", tmp_path / "auto.png", folder / "float").code == 0
    assert read_image(tmp_path / "auto.png", max_bits=16).bits == 8


def test_bundles_of_8_bits_say_so_or_refuse(folder, tmp_path):
    write_image(tmp_path / "deep.png", gradient())
    outcome = upscale(tmp_path / "deep.png", tmp_path / "out.png", folder / "uint8")
    assert outcome.code == 0, outcome.stderr
    assert "16 bits a sample become 8, because the bundle takes and returns uint8" in outcome.stderr
    with Engine.open(folder / "uint8", options=ONE_THREAD) as engine:
        rounded = engine.upscale(np.rint(gradient() / 257).astype(np.uint8))
    np.testing.assert_array_equal(read_rgb(tmp_path / "out.png"), rounded)
    assert "become 8" not in upscale(tmp_path / "deep.png", tmp_path / "o.png", folder / "uint8", "--depth", 8).stderr
    refused = upscale(tmp_path / "deep.png", tmp_path / "no.png", folder / "uint8", "--depth", 16)
    assert refused.code == 2
    assert "without --io uint8" in refused.stderr
    assert not (tmp_path / "no.png").exists()


def test_formats_of_8_bits_say_so_or_refuse(folder, tmp_path):
    write_image(tmp_path / "deep.png", gradient())
    outcome = upscale(tmp_path / "deep.png", tmp_path / "out.webp", folder / "float")
    assert outcome.code == 0, outcome.stderr
    assert "16 bits a sample become 8, because the format of OUT" in outcome.stderr
    refused = upscale(tmp_path / "deep.png", tmp_path / "out.jpg", folder / "float", "--depth", 16)
    assert refused.code == 2
    assert "JPEG holds 8 bits" in refused.stderr
    with pytest.raises(UsageError, match="8 bits"):
        write_image(tmp_path / "out.jpg", gradient())
    for ends in (("in.mp4", "out.mp4"), ("-", "-")):
        assert upscale(*map(Path, ends), folder / "float", "--depth", 16, "--size", "8x8").code == 2


def test_folders_hold_both_and_are_resumed(folder, tmp_path):
    photos, results = tmp_path / "in", tmp_path / "out"
    write_image(photos / "deep.png", gradient())
    write_image(photos / "plain.png", random_images(20, 24)[0].transpose(1, 2, 0).astype(np.uint8))
    outcome = upscale(photos, results, folder / "float", "--json")
    assert outcome.code == 0, outcome.stderr
    assert [image["bits"] for image in outcome.document["images"]] == [16, 8]
    np.testing.assert_array_equal(ffmpeg_samples(results / "deep.png"), expected(gradient()))
    assert "2 of 2 images are done already" in upscale(photos, results, folder / "float").stderr
    narrowed = upscale(photos, results, folder / "uint8", "--overwrite", "--json")
    assert narrowed.stderr.count("become 8") == 1
    assert "1 of 2 images: 16 bits" in narrowed.stderr
    assert [image["bits"] for image in narrowed.document["images"]] == [8, 8]
