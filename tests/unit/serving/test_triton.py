"""Triton model repositories: parsed with Triton's own schema, and held against what the files in them really take."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

from odm_deploy.bundle.manifest import Manifest
from odm_deploy.errors import InputError, UsageError
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.serving.triton import write_triton_models
from tests.factories import lowered, tiny_model

PROFILE = InputShapes((1, 3, 16, 16), (4, 3, 24, 32), (8, 3, 64, 64))
NUMPY = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32}


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """`model_config.proto` as NVIDIA's client package carries it, loaded without the rest of that package."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or package.origin is None:
        pytest.skip("Triton's schema is not here: pip install --no-deps tritonclient")
    path = Path(package.origin).parent / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_bundle(folder: Path, engine: dict[str, Any] | None = None, **options: str) -> Path:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(lowered(tiny_model(4), **options).SerializeToString())
    (folder / "engine.plan").write_bytes(b"ftrt plan")
    network = {"name": "edsr", "scale": 2, "config": {}}
    Manifest(network, {}, {"io": "float32", **options}, 10, {}, engine=engine).write(folder)
    return folder


def read_config(folder: Path, schema: ModuleType) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), schema.ModelConfig())


@pytest.mark.parametrize("options", [{"io": "uint8", "layout": "nhwc"}, {"io": "uint8"}, {}])
def test_onnx_model_is_declared_as_it_is(tmp_path, schema, options):
    (folder,) = write_triton_models(make_bundle(tmp_path / "sr x2", **options), tmp_path / "repository", PROFILE)
    config = read_config(folder, schema)
    assert config.name == folder.name == "sr_x2_onnx"
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == 8
    session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    for declared, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [tensor.name for tensor in declared] == [tensor.name for tensor in real]
        assert [-1 if isinstance(size, str) else size for size in real[0].shape] == [-1, *declared[0].dims]
    # The warm-up request, put together as Triton does it, runs.
    (warm_up,) = config.model_warmup
    request = warm_up.inputs["input"]
    assert request.random_data
    assert request.data_type == config.input[0].data_type
    dtype = NUMPY[schema.DataType.Name(request.data_type)]
    feed = np.zeros((warm_up.batch_size, *request.dims), dtype)
    (result,) = session.run(None, {config.input[0].name: feed})
    assert result.dtype == NUMPY[schema.DataType.Name(config.output[0].data_type)]
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, schema.ModelInstanceGroup.KIND_CPU)


def test_batches_are_gathered_where_the_profile_allows_any(tmp_path, schema):
    bundle = make_bundle(tmp_path / "sr", io="uint8")
    (folder,) = write_triton_models(bundle, tmp_path / "many", PROFILE)
    assert list(read_config(folder, schema).dynamic_batching.preferred_batch_size) == [4, 8]
    (folder,) = write_triton_models(bundle, tmp_path / "one", InputShapes.up_to(64, 64))
    config = read_config(folder, schema)
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")


def test_plan_of_tensorrt_is_served_with_the_profile_it_was_built_for(tmp_path, schema):
    engine = {"flavour": "tensorrt", "version": "10.13.3.9", "profile": "1x3x8x8:2x3x40x48:4x3x64x64"}
    bundle = make_bundle(tmp_path / "sr", engine, io="uint8", layout="nhwc")
    onnx_model, plan = write_triton_models(bundle, tmp_path / "repository", PROFILE)
    assert (plan / "1" / "model.plan").read_bytes() == (bundle / "engine.plan").read_bytes()
    assert (plan / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()
    config = read_config(plan, schema)
    assert (config.name, config.backend, config.max_batch_size) == ("sr_tensorrt", "tensorrt", 4)
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    (warm_up,) = config.model_warmup
    assert (warm_up.batch_size, list(warm_up.inputs["input"].dims)) == (2, [40, 48, 3])
    assert read_config(onnx_model, schema).max_batch_size == 8


def test_plan_of_rtx_is_left_out_with_a_word(tmp_path):
    said: list[str] = []
    bundle = make_bundle(tmp_path / "sr", {"flavour": "tensorrt_rtx", "profile": "1x3x8x8"})
    assert len(write_triton_models(bundle, tmp_path / "repository", PROFILE, say=said.append)) == 1
    assert "Triton does not load" in said[0]
    assert "--builder tensorrt" in said[0]


def test_models_are_replaced_and_strangers_left_alone(tmp_path):
    bundle = make_bundle(tmp_path / "sr")
    repository = tmp_path / "repository"
    for _ in range(2):
        (folder,) = write_triton_models(bundle, repository, PROFILE)
    assert sorted(path.name for path in repository.iterdir()) == ["sr_onnx"]
    assert sorted(path.name for path in folder.iterdir()) == ["1", "config.pbtxt", "manifest.json"]
    (repository / "other_onnx").mkdir()
    (repository / "other_onnx" / "config.pbtxt").write_text("theirs")
    with pytest.raises(InputError, match="other_onnx"):
        write_triton_models(bundle, repository, PROFILE, name="other")
    assert (repository / "other_onnx" / "config.pbtxt").read_text() == "theirs"


def test_names_and_graphs_triton_cannot_serve_are_refused(tmp_path):
    bundle = make_bundle(tmp_path / "sr")
    with pytest.raises(UsageError, match="model name"):
        write_triton_models(bundle, tmp_path / "repository", PROFILE, name="a/b")
    fixed = lowered(tiny_model(4))
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    (bundle / "model.onnx").write_bytes(fixed.SerializeToString())
    with pytest.raises(InputError, match="no batch of images"):
        write_triton_models(bundle, tmp_path / "repository", PROFILE)
    shutil.rmtree(bundle)
    with pytest.raises(InputError, match=r"no such file or folder; make a bundle with"):
        write_triton_models(bundle, tmp_path / "repository", PROFILE)
    assert not (tmp_path / "repository").exists()
