"""Hostile and broken model files end in one line."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from odm_deploy.errors import InputError
from odm_deploy.graphs.files import parse_onnx, read_bytes, read_onnx
from odm_deploy.graphs.shapes import infer_shapes
from tests.qdq_graphs import LEGAL


@pytest.fixture
def model():
    return LEGAL["plain"]()


def weights(model):
    return next(tensor for tensor in model.graph.initializer if tensor.name == "weight_q")


def test_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(InputError, match="no regular file"):
        read_onnx(tmp_path / "model.onnx")


def test_file_beyond_the_limit_is_not_read(tmp_path):
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(InputError, match="at most 1000"):
        read_bytes(tmp_path / "large", limit=1000)


def cut_short(tensor):
    tensor.raw_data = tensor.raw_data[:5]


def shape_below_zero(tensor):
    tensor.dims[0] = -4


def unknown_type(tensor):
    tensor.data_type = 77


def too_few_floats(tensor):
    tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, TensorProto.FLOAT, [4], [1, 2, 3, 4]))
    tensor.dims[0] = 9


@pytest.mark.parametrize("damage", [cut_short, shape_below_zero, unknown_type, too_few_floats])
def test_tensor_that_is_not_what_it_says_is_refused(model, damage):
    damage(weights(model))
    with pytest.raises(InputError, match="'weight_q'"):
        parse_onnx(model.SerializeToString())


def test_tensor_inside_a_node_is_checked_too(model):
    value = numpy_helper.from_array(np.zeros(3, np.float32), "inner")
    value.raw_data = value.raw_data[:-1]
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["unused"], value=value))
    with pytest.raises(InputError, match="'inner'"):
        parse_onnx(model.SerializeToString())


def test_promised_data_larger_than_any_network_is_refused(model):
    tensor = weights(model)
    tensor.ClearField("raw_data")
    tensor.ClearField("int32_data")
    tensor.dims[:] = [2**20, 2**20]
    tensor.data_location = TensorProto.EXTERNAL
    with pytest.raises(InputError, match="at most"):
        parse_onnx(model.SerializeToString())


@pytest.mark.parametrize("stated", [{}, {"length": "4096"}, {"offset": "0", "length": "4096"}])
def test_external_data_is_not_read_more_often_than_it_is_there(model, tmp_path, stated):
    (tmp_path / "w.bin").write_bytes(bytes(4096))

    def add(name):
        tensor = model.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=[1024])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "w.bin", **stated}.items():
            tensor.external_data.add(key=key, value=value)
        onnx.save(model, tmp_path / "m.onnx")

    add("one")
    graph, _ = read_onnx(tmp_path / "m.onnx")
    assert len(graph.graph.initializer[-1].raw_data) == 4096
    add("other")
    with pytest.raises(InputError, match=r"its tensors take 8192 bytes of external data; 4096 are there"):
        read_onnx(tmp_path / "m.onnx")


def test_every_legal_type_is_accepted():
    for label in ("plain", "half precision rest", "one weight scale"):
        parse_onnx(LEGAL[label]().SerializeToString())
    for kind in (TensorProto.INT4, TensorProto.BOOL, TensorProto.BFLOAT16, TensorProto.INT64):
        model = LEGAL["plain"]()
        model.graph.initializer.append(onnx.helper.make_tensor("odd", kind, [3], [1, 0, 1]))
        parse_onnx(model.SerializeToString())


def test_graph_that_contradicts_itself_is_one_line(model):
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("a_dq", TensorProto.FLOAT, [1]))
    model.graph.node[0].domain = "com.nobody"
    with pytest.raises(InputError, match="contradicts itself"):
        infer_shapes(model, None)
