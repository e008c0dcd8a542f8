"""A path becomes a bundle: what is found from which path, and that each file is read once."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import odm_deploy
from odm_deploy.bundle import Bundle
from odm_deploy.bundle.golden import Golden, GoldenImage, golden_images, hash_of
from odm_deploy.bundle.image_format import ImageFormat
from odm_deploy.bundle.manifest import MANIFEST_FILE, Manifest
from odm_deploy.errors import InputError
from tests.sr_graphs import sr_model

RTX_PLAN = b"vtrt" + bytes(12) + (28).to_bytes(8, "little") + bytes([1, 7, 1, 116])
MANIFEST = Manifest(
    {"name": "edsr", "scale": 4},
    {},
    {"io": "uint8", "layout": "nhwc", "order": "bgr"},
    9,
    {},
    engine={"flavour": "tensorrt_rtx"},
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(sr_model().SerializeToString())
    (folder / "engine.plan").write_bytes(RTX_PLAN)
    MANIFEST.write(folder)
    return folder


def test_the_package_exports_it() -> None:
    assert odm_deploy.Bundle is Bundle


def test_a_folder_may_have_the_name_of_a_checkpoint(bundle: Path) -> None:
    # `quantize --export` of many files by a pattern gives such names, and the bundle is written by then.
    folder = bundle.rename(bundle.with_name("weights.pth"))
    assert Bundle.open(folder).folder == folder


def test_every_way_in_finds_the_rest(bundle: Path) -> None:
    graph, plan = bundle / "model.onnx", bundle / "engine.plan"
    opened = {path: Bundle.open(path) for path in (bundle, graph, plan)}
    found = {path: (each.kind, each.onnx_path, each.plan_path, each.folder) for path, each in opened.items()}
    assert found == {
        bundle: (None, graph, plan, bundle),
        # Who names the graph wants the graph to run.
        graph: ("onnx", graph, None, bundle),
        plan: ("plan", graph, plan, bundle),
    }
    for each in opened.values():
        assert each.manifest == each.require_manifest() == MANIFEST
        assert each.graph == sr_model()
        assert each.onnx_bytes == graph.read_bytes()
        assert each.image_format == ImageFormat("uint8", "nhwc", "bgr")
        assert each.engine_facts == {"flavour": "tensorrt_rtx"}
        assert each.golden is None
    assert opened[bundle].plan_bytes == RTX_PLAN
    assert str(opened[bundle].plan_header) == "tensorrt_rtx 1.7.1.116"


def test_an_open_bundle_is_handed_on_and_strings_will_do(bundle: Path) -> None:
    opened = Bundle.open(str(bundle))
    assert opened.path == bundle
    assert str(opened) == str(bundle)
    assert Bundle.open(opened) is opened


def test_everything_is_read_when_asked_for_and_once(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    # Not read yet: what it finds is what lies there now.
    (bundle / "engine.plan").write_bytes(RTX_PLAN[:-4] + bytes([1, 8, 0, 5]))
    dataclasses.replace(MANIFEST, receptive_radius_px=7).write(bundle)

    def everything() -> list[object]:
        manifest = opened.require_manifest()
        return [opened.graph, opened.onnx_bytes, opened.plan_bytes, opened.plan_header, manifest, opened.image_format]

    first = everything()
    assert str(opened.plan_header) == "tensorrt_rtx 1.8.0.5"
    assert opened.require_manifest().receptive_radius_px == 7
    shutil.rmtree(bundle)
    assert all(again is before for again, before in zip(everything(), first, strict=True))


def test_the_header_of_a_large_plan_does_not_read_the_plan(bundle: Path) -> None:
    plan = bundle / "engine.plan"
    with plan.open("wb") as stream:
        stream.write(b"ftrt" + bytes(20) + bytes([10, 13, 3, 9]))
        # A hole of a TiB, which nobody could read.
        stream.truncate(1 << 40)
    assert str(Bundle.open(plan).plan_header) == "tensorrt 10.13.3.9"


def test_files_outside_a_bundle_have_no_manifest(tmp_path: Path) -> None:
    file = tmp_path / "alone.onnx"
    file.write_bytes(sr_model().SerializeToString())
    alone = Bundle.open(file)
    assert (alone.folder, alone.manifest, alone.image_format, alone.golden, alone.engine_facts) == (None,) * 4 + ({},)
    with pytest.raises(InputError, match=r"is not a bundle.*make one with: odm-deploy export"):
        alone.require_manifest()


def test_a_manifest_does_not_describe_other_files_in_its_folder(bundle: Path) -> None:
    other = bundle / "other.onnx"
    other.write_bytes(sr_model().SerializeToString())
    assert Bundle.open(other).image_format is None


@pytest.mark.parametrize("name", ["missing.onnx", "missing.plan", "missing"])
def test_what_is_not_there_is_said_to_be_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"cannot load .*{name}: there is no such file"):
        Bundle.open(tmp_path / name)


def test_what_a_bundle_does_not_hold_is_said_with_how_to_make_it(tmp_path: Path) -> None:
    plan = tmp_path / "alone.plan"
    plan.write_bytes(RTX_PLAN)
    with pytest.raises(InputError, match=r"alone\.plan: there is no model\.onnx beside it.*odm-deploy export"):
        _ = Bundle.open(plan).graph
    with pytest.raises(InputError, match=r"it holds no model\.onnx"):
        _ = Bundle.open(tmp_path).onnx_bytes
    for read in (lambda: Bundle.open(tmp_path).plan_bytes, lambda: Bundle.open(tmp_path).plan_header):
        with pytest.raises(InputError, match=r"it holds no engine\.plan.*odm-deploy build"):
            read()


@pytest.mark.parametrize(("data", "why"), [(b"", "the file is empty"), (b"\x08", "do not parse|hold no graph")])
def test_damaged_graphs_are_refused(tmp_path: Path, data: bytes, why: str) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(data)
    for path in (file, tmp_path):
        with pytest.raises(InputError, match=why):
            _ = Bundle.open(path).graph


def test_a_damaged_manifest_is_refused_but_for_the_facts_about_a_good_plan(bundle: Path) -> None:
    (bundle / MANIFEST_FILE).write_text("{ damaged")
    opened = Bundle.open(bundle)
    assert opened.engine_facts == {}
    assert opened.image_format is None
    with pytest.raises(InputError, match="is damaged"):
        _ = opened.manifest


def test_the_golden_record_is_found(bundle: Path) -> None:
    images = [GoldenImage(name, list(image.shape), hash_of(image), "", {}) for name, image in golden_images().items()]
    Golden({}, images).write(bundle)
    for path in (bundle, bundle / "model.onnx", bundle / "engine.plan"):
        assert Bundle.open(path).golden == Golden({}, images)


def constants_of_its_own(weights: np.ndarray) -> onnx.ModelProto:
    """y = x + a + (b if true else b): `a` is a Constant node's, `b` lies in the bodies of an If."""

    def body(name: str) -> onnx.GraphProto:
        stored = numpy_helper.from_array(weights, "b")
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, weights.shape)
        return helper.make_graph([helper.make_node("Identity", ["b"], [name])], name, [], [out], [stored])

    nodes = [
        helper.make_node("Constant", [], ["a"], value=numpy_helper.from_array(weights, "a")),
        helper.make_node("If", ["yes"], ["c"], then_branch=body("then"), else_branch=body("else")),
        helper.make_node("Add", ["x", "a"], ["d"]),
        helper.make_node("Add", ["d", "c"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, weights.shape) for name in "xy")
    yes = numpy_helper.from_array(np.array(True), "yes")
    graph = helper.make_graph(nodes, "g", [x], [y], [yes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_external_data_is_embedded_wherever_in_the_graph_it_belongs(tmp_path: Path) -> None:
    """Runtimes get bytes: what stayed outside would be looked for in the current folder."""
    weights = np.arange(512, dtype=np.float32)
    file, expected = tmp_path / "model.onnx", constants_of_its_own(weights)
    outside = constants_of_its_own(weights)
    onnx.save(
        outside, file, save_as_external_data=True, location="weights.bin", size_threshold=0, convert_attribute=True
    )
    assert b"weights.bin" in file.read_bytes()
    opened = Bundle.open(file)
    assert b"weights.bin" not in opened.onnx_bytes
    for name in ("a", "b"):
        for tensor in (tensor for tensor in stored(opened.graph) if tensor.name == name):
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), weights)
    assert len(stored(opened.graph)) == len(stored(expected)) == 4
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"its external data cannot be read.*; put the files that its export wrote"):
        _ = Bundle.open(file).graph


def stored(model: onnx.ModelProto) -> list[TensorProto]:
    bodies = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")]
    constants = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    return [*model.graph.initializer, *constants, *(tensor for body in bodies for tensor in body.initializer)]
