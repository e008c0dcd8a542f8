"""A graph against what its model lowers to again: every constant counts, whatever it changes, and names do not."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from odm_deploy.bundle import Bundle
from odm_deploy.bundle.manifest import CPU_ONNX_FILE, ONNX_FILE, Manifest
from odm_deploy.checkpoint import save_model
from odm_deploy.export import write_bundle
from odm_deploy.lowering.lower import LoweringOptions
from odm_deploy.lowering.metadata import mark_exact, read_taps, write_taps
from odm_deploy.lowering.written_by import written_by
from odm_deploy.progress import silent
from odm_deploy.proof.graph_check import GraphCheck
from odm_deploy.proof.lowered_again import check_graph, check_graphs, way_of
from odm_deploy.quantization.exact.freeze import proven
from tests.factories import exact_model, lowered, model_of_all_kinds, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def written(folder, model, graph: onnx.ModelProto, **stated: Any) -> Bundle:
    """A bundle that holds `graph`, written by whoever runs here."""
    (folder / ONNX_FILE).write_bytes(graph.SerializeToString())
    options = dataclasses.asdict(LoweringOptions())
    keys: dict[str, Any] = {"network": {"scale": 2}, "checkpoint": {}, "layers": {}, "receptive_radius_px": None}
    Manifest(onnx={**options, "written_by": written_by(model), **stated}, **keys).write(folder)
    return Bundle.open(folder)


def check(bundle, model, **options) -> GraphCheck:
    """`check_graphs` without lowering anew what was lowered already."""
    assert way_of(bundle) == LoweringOptions(**options)
    return check_graph(bundle, model, lowered(model, **options))


def alone(folder, graph: onnx.ModelProto) -> Bundle:
    (folder / "alone.onnx").write_bytes(graph.SerializeToString())
    return Bundle.open(folder / "alone.onnx")


def test_a_graph_is_what_its_model_lowers_to(model, tmp_path):
    found = check(written(tmp_path, model, lowered(model)), model)
    assert found.identical
    assert found.compared > 30
    assert (found.failures, found.remark, found.written_by) == ([], "", None)


@pytest.mark.parametrize(
    "options",
    [
        {"target": "cpu"},
        {"precision": "fp16"},
        {"precision": "bf16"},
        {"io": "uint8", "layout": "nhwc", "order": "bgr"},
        {"io": "uint8", "target": "cpu"},
    ],
)
def test_a_graph_alone_shows_how_it_was_lowered(options, model, tmp_path):
    assert check(alone(tmp_path, lowered(model, **options)), model, **options).identical


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_grids_and_weights_of_all_kinds_lower_to_the_same_again(power_of_two, target, tmp_path):
    model = model_of_all_kinds(power_of_two=power_of_two)
    assert check(alone(tmp_path, lowered(model, target=target)), model, target=target).identical


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
@pytest.mark.parametrize("build", [tiny_model, exact_model])
def test_one_bit_of_any_constant_is_a_fault(build, target, tmp_path):
    model = build()
    graph = lowered(model, target=target)
    read = {name for node in graph.graph.node for name in node.input}
    for tensor in graph.graph.initializer:
        if tensor.name not in read or not numpy_helper.to_array(tensor).size:
            continue
        sound = tensor.SerializeToString()
        value = numpy_helper.to_array(tensor).copy()
        value.reshape(-1).view(f"u{value.dtype.itemsize}")[-1] ^= 1
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        found = check(written(tmp_path, model, graph, target=target), model, target=target)
        assert not found.wiring
        (failure,) = found.failures
        assert f"is not what model.pt lowers to: {tensor.name}" in failure
        tensor.ParseFromString(sound)


def bypassed(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same without its first ReLU."""
    relu = next(node for node in graph.graph.node if node.op_type == "Relu")
    for node in graph.graph.node:
        node.input[:] = [relu.input[0] if name == relu.output[0] else name for name in node.input]
    graph.graph.node.remove(relu)
    return graph


def test_another_wiring_by_the_same_program_is_a_fault(model, tmp_path):
    found = check(written(tmp_path, model, bypassed(lowered(model))), model)
    (failure,) = found.failures
    assert "instead of" in failure
    assert found.remark == ""


@pytest.mark.parametrize("writer", [{"written_by": "odm-deploy 0.0.9, torch 1.0"}, {"written_by": 7}])
def test_another_wiring_by_another_program_is_a_remark(writer, model, tmp_path):
    found = check(written(tmp_path, model, bypassed(lowered(model)), **writer), model)
    assert found.failures == []
    assert "its wiring only by what it computes" in found.remark
    assert "odm-deploy" in found.remark or "an unknown version" in found.remark


def test_another_constant_by_another_program_is_a_fault(model, tmp_path):
    graph = lowered(model)
    scale = next(each for each in graph.graph.initializer if each.name.endswith(".scale_w"))
    value = np.nextafter(numpy_helper.to_array(scale), np.float32(1))
    scale.CopyFrom(numpy_helper.from_array(value, scale.name))
    found = check(written(tmp_path, model, graph, written_by="odm-deploy 0.0.9"), model)
    assert scale.name in found.failures[0]


def test_names_are_no_fault(model, tmp_path):
    """Other versions of the exporter name tensors otherwise, and the taps then say so, too."""
    graph = lowered(model)
    kept = {edge.name for edge in (*graph.graph.input, *graph.graph.output)}
    names = {name: f"{name}.renamed" for node in graph.graph.node for name in (*node.input, *node.output)}
    names = {name: new for name, new in names.items() if name not in kept}
    for node in graph.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in graph.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    taps = [
        dataclasses.replace(
            tap, **{key: names.get(getattr(tap, key), getattr(tap, key)) for key in ("source", "codes")}
        )
        for tap in read_taps(graph)
    ]
    metadata: dict[str, str] = {}
    write_taps(metadata, taps)
    for entry in graph.metadata_props:
        entry.value = metadata.get(entry.key, entry.value)
    assert check(written(tmp_path, model, graph), model).identical


def test_taps_elsewhere_are_a_fault(model, tmp_path):
    graph = lowered(model)
    (taps,) = [entry for entry in graph.metadata_props if entry.key == "odm.taps"]
    documents = json.loads(taps.value)
    documents[0]["code_offset"] += 1
    taps.value = json.dumps(documents)
    assert "quantizers" in check(written(tmp_path, model, graph), model).failures[0]


@pytest.mark.parametrize("build", [tiny_model, exact_model])
def test_the_mark_of_exact_models_counts(build, tmp_path):
    """Runtimes compute faster and less exactly without it."""
    model = tiny_model() if build is tiny_model else proven(exact_model(), coarsened_channels=0)
    graph = lowered(model)
    metadata: dict[str, str] = {}
    mark_exact(metadata)
    if build is tiny_model:
        helper.set_model_props(graph, {**{each.key: each.value for each in graph.metadata_props}, **metadata})
    else:
        kept = [each for each in graph.metadata_props if each.key not in metadata]
        del graph.metadata_props[:]
        graph.metadata_props.extend(kept)
    assert "exact" in check(written(tmp_path, model, graph), model).failures[0]


@pytest.mark.parametrize(
    "stated",
    [{"target": "cpu"}, {"io": "uint8"}, {"order": "bgr"}, {"precision": "fp16"}, {"target": ["cpu"]}, {"target": "?"}],
)
def test_a_manifest_that_states_another_way_is_a_fault(stated, model, tmp_path):
    (found,) = check_graphs([written(tmp_path, model, lowered(model), **stated)], model)
    assert found.failures


def test_a_way_that_cannot_be_lowered_is_a_fault_by_whomever(tmp_path):
    model = proven(exact_model(), coarsened_channels=0)
    bundle = written(tmp_path, model, lowered(model), precision="fp16", written_by="odm-deploy 0.0.9")
    (found,) = check_graphs([bundle], model)
    assert "cannot be lowered" in found.failures[0]


def test_both_graphs_of_a_bundle_are_compared(model, tmp_path):
    save_model(model, tmp_path / "model.pt")
    path = tmp_path / "bundle"
    write_bundle(model, tmp_path / "model.pt", path, LoweringOptions(), None, silent, for_cpus=True)
    both = [Bundle.open(path), Bundle.open(path).seen_by("openvino")]
    found = check_graphs(both, model)
    assert [each.file for each in found] == [ONNX_FILE, CPU_ONNX_FILE]
    assert all(each.identical and each.written_by is None for each in found)


def test_an_edge_that_nothing_tells_of_is_no_traceback(model, tmp_path):
    graph = lowered(model)
    graph.graph.input[0].CopyFrom(helper.make_tensor_value_info("input_bgr", onnx.TensorProto.DOUBLE, [1, 5, 5, 3]))
    assert check(alone(tmp_path, graph), model).wiring
    del graph.graph.input[:]
    assert check(alone(tmp_path, graph), model).wiring
