"""How images are cut: by memory, by what an engine was built for, and not at all where a network cannot be."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest

from odm_deploy.bundle.manifest import read_manifest
from odm_deploy.checkpoint import save_model
from odm_deploy.engine import Engine
from odm_deploy.errors import InputError, UsageError
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.reading import read_image
from odm_deploy.imaging.tile_size import Tiles, whole_limit_px
from odm_deploy.lowering.activation_memory import activation_bytes_per_px
from odm_deploy.machine.host import memory_bytes
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import open_runtime
from tests.command_line import run_cli
from tests.factories import exact_model, random_images


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    save_model(exact_model(), folder / "model.pt")
    assert run_cli("export", folder / "model.pt", "-o", folder / "bundle", "--no-engine").code == 0
    return folder / "bundle"


def test_tiles_are_chosen_by_memory_and_by_what_was_asked_for(bundle):
    per_px = activation_bytes_per_px(onnx.load(bundle / "model.onnx"))
    with Engine.open(bundle) as engine:
        limit = whole_limit_px(memory_bytes(), per_px)
        assert engine.tiles == Tiles(2, radius_px=engine.manifest.receptive_radius_px, whole_limit_px=limit)
        assert engine.tile_size(8, limit // 8) == 0
        assert engine.tile_size(8, limit) > 0
        assert engine.scale == 2
    with Engine.open(bundle, tile=0) as engine:
        assert engine.tile_size(20000, 20000) == 0
    with Engine.open(bundle, tile=48) as engine:
        assert engine.tile_size(10, 10) == 48


def test_automatic_tiles_show_no_seam(bundle):
    image = Image(*(random_images(90, 131, seed=seed)[0].transpose(1, 2, 0).astype(np.uint8) for seed in (1,)))
    with Engine.open(bundle, tile=0) as engine:
        whole = engine.upscale(image)
        np.testing.assert_array_equal(engine.upscale(image.rgb, tile=48), whole.rgb)
    manifest = read_manifest(bundle)
    tiles = Tiles(2, manifest.receptive_radius_px, whole_limit_px=1)
    with Engine(open_runtime(bundle), manifest, tiles=tiles) as engine:
        assert engine.tile_size(90, 131) == 64
        np.testing.assert_array_equal(engine.upscale(image).rgb, whole.rgb)
        np.testing.assert_array_equal(engine.upscale(image.rgb), whole.rgb)


def test_a_network_that_looks_everywhere_is_blended(bundle):
    # This network sees 8 pixels far, less than what strips throw away: no need to blend, and no harm.
    image = Image(random_images(150, 70)[0].transpose(1, 2, 0).astype(np.uint8))
    with Engine(open_runtime(bundle), tiles=Tiles(2, radius_px=None)) as engine:
        whole = engine.upscale(image.rgb)
        np.testing.assert_array_equal(engine.upscale(image.rgb, tile=128), whole)
        bands = list(engine.upscale_bands(image.rgb, tile=128))
        np.testing.assert_array_equal(np.concatenate(bands), whole)
        assert len(bands) == 2


def test_a_bare_model_runs_images_whole(bundle, tmp_path):
    (tmp_path / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes())
    image = Image(random_images(30, 20)[0].transpose(1, 2, 0).astype(np.uint8))
    with Engine.open(bundle) as engine:
        expected = engine.upscale(image.rgb)
    with Engine.open(tmp_path / "model.onnx") as bare:
        np.testing.assert_array_equal(bare.upscale(image.rgb), expected)
        bare.upscale_to(tmp_path / "x.png", image)
        with pytest.raises(UsageError, match="bare model"):
            bare.upscale(image.rgb, tile=64)
        with pytest.raises(UsageError, match="bare model"):
            _ = bare.scale
    np.testing.assert_array_equal(read_image(tmp_path / "x.png").rgb, expected)


def test_an_image_keeps_gray_profile_and_depth(bundle):
    rgb = random_images(12, 9)[0].transpose(1, 2, 0).astype(np.uint8)
    image = Image(rgb, alpha=rgb[..., 0].copy(), gray=True, icc_profile=b"profile")
    with Engine.open(bundle) as engine:
        result = engine.upscale(image)
        assert (result.gray, result.icc_profile, result.bits) == (True, b"profile", 8)
        np.testing.assert_array_equal(result.rgb, engine.upscale(rgb))
        alpha = engine.upscale(np.repeat(rgb[..., :1], 3, axis=2))[..., 1]
        np.testing.assert_array_equal(result.alpha, alpha)
        assert engine.upscale(Image(rgb * np.uint16(257))).bits == 16
        assert engine.upscale(image, bits=16).bits == 16
    with Engine.open(bundle, bits=16) as engine:
        assert engine.upscale(rgb).dtype == np.uint16
        assert engine.upscale(image).bits == 16


@pytest.mark.parametrize("asked", [{"bits": 7}, {"bits": 0}, {"tile": -5}])
def test_depths_and_tiles_that_do_not_exist_are_refused(bundle, asked):
    with pytest.raises(UsageError):
        Engine.open(bundle, **asked)


def test_tiles_of_a_bare_model_are_refused_at_once(bundle, tmp_path):
    bare = tmp_path / "bare.onnx"
    bare.write_bytes((bundle / "model.onnx").read_bytes())
    with pytest.raises(UsageError, match="bare model"):
        Engine.open(bare, tile=16)


def test_pixels_are_written_as_images_are(bundle, tmp_path):
    rgb = random_images(12, 9)[0].transpose(1, 2, 0).astype(np.uint8)
    with Engine.open(bundle) as engine:
        engine.upscale_to(tmp_path / "x.png", rgb)
        np.testing.assert_array_equal(read_image(tmp_path / "x.png").rgb, engine.upscale(rgb))


def test_a_refused_opening_frees_the_model(bundle, tmp_path, monkeypatch):
    out = tmp_path / "uint8"
    assert run_cli("export", bundle.parent / "model.pt", "-o", out, "--io", "uint8", "--no-engine").code == 0
    opened = open_runtime(out)
    monkeypatch.setattr("odm_deploy.engine.open_runtime", lambda *_: opened)
    with pytest.raises(UsageError, match="16 bits"):
        Engine.open(out, bits=16)
    with pytest.raises(UsageError, match="closed"):
        opened.upscale(random_images(8, 8))


def test_bytes_per_pixel_are_those_of_the_widest_moment(bundle):
    def conv(source: str, result: str, channels: int, inputs: int):
        weight = onnx.numpy_helper.from_array(np.zeros((channels, inputs, 3, 3), np.float32), f"{result}.w")
        node = onnx.helper.make_node("Conv", [source, weight.name], [result], pads=[1, 1, 1, 1], kernel_shape=[3, 3])
        return node, weight

    shape = ["n", 3, "h", "w"]
    first, first_weight = conv("x", "a", 16, 3)
    relu = onnx.helper.make_node("Relu", ["a"], ["r"])
    second, second_weight = conv("r", "b", 16, 16)
    add = onnx.helper.make_node("Add", ["b", "r"], ["s"])
    last, last_weight = conv("s", "y", 3, 16)
    graph = onnx.helper.make_graph(
        [first, relu, second, add, last],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        [first_weight, second_weight, last_weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    # While the sum is made: both of its terms and itself, 16 float32 channels each; the Relu is no copy.
    assert activation_bytes_per_px(model) == 3 * 16 * 4


def test_a_damaged_graph_is_named(bundle, tmp_path):
    for name in ("manifest.json", "model.onnx"):
        (tmp_path / name).write_bytes((bundle / name).read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"noise")
    with pytest.raises(InputError, match=r"model\.onnx"):
        Engine.open(tmp_path)


@pytest.mark.parametrize("name", ["x.png", "x.webp"])
@pytest.mark.parametrize("kind", ["colour", "alpha", "gray"])
def test_files_written_in_bands_hold_the_same_as_whole_ones(bundle, tmp_path, name, kind):
    pixels = random_images(70, 50)[0].transpose(1, 2, 0).astype(np.uint8)
    alpha = pixels[..., 1] if kind == "alpha" else None
    if kind == "gray":
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
    image = Image(pixels, alpha, gray=kind == "gray")
    with Engine.open(bundle, tile=32) as engine:
        whole = engine.upscale(image)
        engine.upscale_to(tmp_path / name, image)
    written = read_image(tmp_path / name)
    np.testing.assert_array_equal(written.rgb, whole.rgb)
    assert (written.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(written.alpha, whole.alpha)


@pytest.mark.parametrize("bits", [8, 16])
def test_large_results_are_never_held_whole(bundle, tmp_path, bits):
    band = random_images(96, 64)[0].transpose(1, 2, 0).astype(np.uint8)
    image = Image(np.tile(band, (60, 1, 1)))
    result_bytes = image.rgb.nbytes * 4 * bits // 8
    with Engine.open(bundle, "onnxruntime", RuntimeOptions(threads=1), tile=96, bits=bits) as engine:
        engine.upscale_to(tmp_path / "warm.png", Image(band))
        tracemalloc.start()
        try:
            engine.upscale_to(tmp_path / "x.png", image)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert read_image(tmp_path / "x.png").height == 2 * image.height
    assert peak < result_bytes / 2
