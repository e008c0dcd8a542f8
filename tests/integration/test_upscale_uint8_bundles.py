"""Bundles that take and return uint8, in any layout and order, give what the host makes of a float bundle: exactly."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from odm_deploy.checkpoint import save_model
from odm_deploy.engine import Engine
from odm_deploy.imaging.image import Image
from odm_deploy.runtimes.options import RuntimeOptions
from tests.command_line import run_cli
from tests.factories import random_images, tiny_model

ONE_THREAD = RuntimeOptions(threads=1)
EDGES = list(itertools.product(("nchw", "nhwc"), ("rgb", "bgr")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uint8")
    save_model(tiny_model(), folder / "model.pt")
    export = ("export", folder / "model.pt", "--no-engine")
    assert run_cli(*export, "-o", folder / "float").code == 0
    for layout, order in EDGES:
        options = ("-o", folder / f"{layout}_{order}", "--io", "uint8", "--layout", layout, "--order", order)
        assert run_cli(*export, *options).code == 0
    return folder


def picture(kind: str) -> Image:
    rgb = random_images(21, 34)[0].transpose(1, 2, 0).astype(np.uint8)
    if kind == "gray":
        return Image(np.repeat(rgb[..., :1], 3, 2), gray=True)
    return Image(rgb, rgb[::-1, :, 1].copy() if kind == "rgba" else None)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_every_layout_and_order_gives_the_same_pixels(folder, runtime):
    kinds = ("rgb", "gray", "rgba")
    with Engine.open(folder / "float", runtime, ONE_THREAD, tile=20) as engine:
        expected = {kind: engine.upscale(picture(kind)) for kind in kinds}
    for layout, order in EDGES:
        with Engine.open(folder / f"{layout}_{order}", runtime, ONE_THREAD, tile=20) as engine:
            assert not engine.has_float_edges
            for kind in kinds:
                found = engine.upscale(picture(kind))
                np.testing.assert_array_equal(found.rgb, expected[kind].rgb)
                assert (found.alpha is None) == (kind != "rgba")
                if found.alpha is not None:
                    np.testing.assert_array_equal(found.alpha, expected[kind].alpha)
