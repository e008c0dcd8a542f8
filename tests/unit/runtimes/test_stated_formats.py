"""A bundle's manifest says how its images lie, whatever the names and shapes of the graph's edges let one think."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from odm_deploy.bundle.image_format import BGR_SUFFIX
from odm_deploy.bundle.manifest import Manifest
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import open_runtime
from tests.factories import lowered, random_images, tiny_model

ONE_THREAD = RuntimeOptions(threads=1)


def write_bundle_of(graph: onnx.ModelProto, folder: Path, **stated: str) -> Path:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    Manifest({"name": "edsr", "scale": 2, "config": {}}, {}, stated, 10, {}).write(folder)
    return folder


def without_the_suffix(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with edges of names that tell nothing of their channels."""
    renamed = {}
    for edge in (graph.graph.input[0], graph.graph.output[0]):
        assert edge.name.endswith(BGR_SUFFIX)
        renamed[edge.name] = edge.name = edge.name.removesuffix(BGR_SUFFIX) + "_image"
    for node in graph.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)
    return graph


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_order_of_channels(tmp_path: Path, layout: str, runtime: str) -> None:
    images = random_images(12, 16)
    with open_runtime(
        write_bundle_of(lowered(tiny_model(), io="uint8"), tmp_path / "rgb", io="uint8"), runtime, ONE_THREAD
    ) as rgb:
        expected = rgb.upscale(images)
    stated = {"io": "uint8", "layout": layout, "order": "bgr"}
    bundle = write_bundle_of(without_the_suffix(lowered(tiny_model(), **stated)), tmp_path / "bgr", **stated)
    for path in (bundle, bundle / "model.onnx"):
        with open_runtime(path, runtime, ONE_THREAD) as bgr:
            np.testing.assert_array_equal(bgr.upscale(images), expected)
    (bundle / "manifest.json").unlink()
    with open_runtime(bundle, runtime, ONE_THREAD) as told_wrongly:
        assert not np.array_equal(told_wrongly.upscale(images), expected)


def test_the_layout_of_an_image_three_pixels_high(tmp_path: Path) -> None:
    """[1, 3, 16, 3] may be either layout: only the manifest knows."""
    stated = {"io": "uint8", "layout": "nhwc"}
    graph = lowered(tiny_model(), **stated)
    for dim, size in zip(graph.graph.input[0].type.tensor_type.shape.dim, (1, 3, 16, 3), strict=True):
        dim.dim_value = size
    bundle = write_bundle_of(graph, tmp_path / "bundle", **stated)
    with open_runtime(bundle, "onnxruntime", ONE_THREAD) as runtime:
        assert runtime.upscale(random_images(3, 16)).shape == (1, 3, 6, 32)
