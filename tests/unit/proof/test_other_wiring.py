"""A graph that says another version wrote it may be wired otherwise, but holds the model's numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from odm_deploy.bundle import Bundle
from odm_deploy.bundle.manifest import MANIFEST_FILE, ONNX_FILE
from odm_deploy.checkpoint import save_model
from odm_deploy.export import write_bundle
from odm_deploy.lowering.lower import LoweringOptions
from odm_deploy.progress import silent
from odm_deploy.proof.lowered_again import check_graphs
from odm_deploy.proof.other_wiring import differences_in_constants
from tests.factories import lowered, model_of_all_kinds, tiny_model

COUNTS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)


def one_at_the_end(graph: onnx.ModelProto) -> None:
    """An Identity in front of the output."""
    name = graph.graph.output[0].name
    for node in graph.graph.node:
        node.output[:] = [f"{name}.before" if each == name else each for each in node.output]
    graph.graph.node.append(helper.make_node("Identity", [f"{name}.before"], [name]))


def everywhere(graph: onnx.ModelProto) -> None:
    """An Identity on each input of each node."""
    for node in list(graph.graph.node):
        for place, name in enumerate(node.input):
            if name:
                new = f"{name}.{node.output[0]}.{place}"
                graph.graph.node.append(helper.make_node("Identity", [name], [new]))
                node.input[place] = new


def at_all_constants(graph: onnx.ModelProto) -> None:
    """A Cast that changes nothing behind each constant, so that none is left in its place."""
    for tensor in graph.graph.initializer:
        new = f"{tensor.name}.cast"
        for node in graph.graph.node:
            node.input[:] = [new if name == tensor.name else name for name in node.input]
        graph.graph.node.append(helper.make_node("Cast", [tensor.name], [new], to=tensor.data_type))


def without_names(graph: onnx.ModelProto) -> None:
    """No names of layers, no taps, and an Identity."""
    one_at_the_end(graph)
    for node in graph.graph.node:
        node.name = ""
    del graph.metadata_props[:]


REWIRED = [one_at_the_end, everywhere, at_all_constants, without_names]


def by_one_bit(graph: onnx.ModelProto, least_size: int) -> Iterator[str]:
    """Change the last bit of each constant in turn; yields their names."""
    read = {name for node in graph.graph.node for name in node.input}
    for tensor in graph.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if tensor.name not in read or value.size < least_size or tensor.data_type in COUNTS:
            continue
        sound = tensor.SerializeToString()
        value.reshape(-1).view(f"u{value.dtype.itemsize}")[-1] ^= 1
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        yield tensor.name
        tensor.ParseFromString(sound)


def constants(model, graph: onnx.ModelProto, target) -> list[str]:
    """The faults among the constants of a graph."""
    expected, other = (lowered(model, target=each) for each in (target, {"cpu": "tensorrt"}.get(target, "cpu")))
    return differences_in_constants(graph, expected, [other], model, lambda name, a, b: False).constants


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_what_another_version_wired_is_a_remark_and_its_constants_count(target, tmp_path):
    model = tiny_model()
    save_model(model, tmp_path / "model.pt")
    write_bundle(model, tmp_path / "model.pt", tmp_path / "b", LoweringOptions(target=target), None, silent)
    manifest = json.loads((tmp_path / "b" / MANIFEST_FILE).read_text())
    manifest["onnx"]["written_by"] = "odm-deploy 0.0.9"
    (tmp_path / "b" / MANIFEST_FILE).write_text(json.dumps(manifest))
    graph = onnx.load(tmp_path / "b" / ONNX_FILE)
    one_at_the_end(graph)
    onnx.save(graph, tmp_path / "b" / ONNX_FILE)
    (sound,) = check_graphs([Bundle.open(tmp_path / "b")], model)
    assert sound.failures == []
    assert "Identity instead of" in sound.remark

    scale = next(each for each in graph.graph.initializer if each.name.endswith(".scale_w"))
    scale.CopyFrom(numpy_helper.from_array(np.nextafter(numpy_helper.to_array(scale), np.float32(1)), scale.name))
    onnx.save(graph, tmp_path / "b" / ONNX_FILE)
    (faulty,) = check_graphs([Bundle.open(tmp_path / "b")], model)
    (failure,) = faulty.failures
    assert scale.name in failure
    assert "instead of" in failure


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
@pytest.mark.parametrize("rewire", REWIRED)
@pytest.mark.parametrize("power_of_two", [False, True])
def test_no_constant_is_a_fault_for_its_wiring(power_of_two, rewire, target):
    model = model_of_all_kinds(power_of_two=power_of_two)
    graph = lowered(model, target=target)
    rewire(graph)
    assert constants(model, graph, target) == []


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
@pytest.mark.parametrize(("rewire", "least_size"), [(one_at_the_end, 1), (everywhere, 1), (at_all_constants, 2)])
def test_a_constant_off_by_one_bit_is_a_fault_in_any_wiring(rewire, least_size, target):
    """What is known by its value alone has to be a tensor: single numbers may be another's."""
    model = tiny_model()
    graph = lowered(model, target=target)
    rewire(graph)
    names = list[str]()
    for name in by_one_bit(graph, least_size):
        found = constants(model, graph, target)
        assert any(name in clause and "instead of" in clause for clause in found), (name, found)
        names.append(name)
    assert len(names) > 10


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_a_bias_that_is_gone_is_a_fault(target):
    model = tiny_model()
    graph = lowered(model, target=target)
    bias = next(node for node in graph.graph.node if node.name == "body.0.body.0").input.pop()
    assert constants(model, graph, target) == [f"{bias} is nowhere in the graph"]


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
@pytest.mark.parametrize("ending", [".scale_x", ".scale_w"])
def test_a_scale_that_is_computed_is_a_fault(ending, target):
    model = tiny_model()
    graph = lowered(model, target=target)
    scale = next(each for each in graph.graph.initializer if each.name.endswith(ending))
    shape = numpy_helper.from_array(np.array(scale.dims, np.int64), "shape")
    value = numpy_helper.from_array(numpy_helper.to_array(scale).reshape(-1)[:1] * np.float32(1.0000001))
    graph.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], [scale.name], value=value))
    graph.graph.initializer.remove(scale)
    graph.graph.initializer.append(shape)
    assert f"{scale.name} is nowhere in the graph" in constants(model, graph, target)


def test_layers_with_each_others_weights_are_a_fault():
    model = tiny_model()
    graph = lowered(model)
    first, second = [each for each in graph.graph.initializer if each.name.endswith("body.0.codes")]
    first.raw_data, second.raw_data = second.raw_data, first.raw_data
    assert len(constants(model, graph, "tensorrt")) == 2


def test_a_number_that_the_model_has_not_is_a_fault():
    model = tiny_model()
    graph = lowered(model)
    one_at_the_end(graph)
    graph.graph.node[-1].op_type = "Mul"
    graph.graph.node[-1].input.append("factor")
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(1.0000001), "factor"))
    assert constants(model, graph, "tensorrt") == ["factor, 1.0000001, is no number that model.pt lowers to"]
