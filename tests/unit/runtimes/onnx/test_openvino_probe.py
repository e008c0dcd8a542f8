"""OpenVINO's crashes stay in another process, and the networks here do not make it crash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from odm_deploy.errors import InputError
from odm_deploy.runtimes.onnx import openvino_probe
from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu
from odm_deploy.runtimes.onnx.openvino_faults import needs_probe
from odm_deploy.runtimes.registry import open_runtime
from tests.factories import lowered, quantized, random_images, tiny_model, tiny_network


def crashing_model() -> onnx.ModelProto:
    """Six operators that OpenVINO 2026.4 does not survive: arithmetic per channel, two gathers, a quantizer."""
    constants = {
        "white": np.float32(255),
        "mean": np.array([0.4, 0.5, 0.6], np.float32).reshape(1, 3, 1, 1),
        "backwards": np.arange(7, -1, -1),
        "scale": np.float32(0.01),
        "zero": np.int8(0),
    }
    nodes = [
        helper.make_node("Div", ["x", "white"], ["a"]),
        helper.make_node("Sub", ["a", "mean"], ["b"]),
        helper.make_node("Gather", ["b", "backwards"], ["c"], axis=2),
        helper.make_node("Gather", ["c", "backwards"], ["d"], axis=3),
        helper.make_node("QuantizeLinear", ["d", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    shape = [1, 3, 8, 8]
    graph = helper.make_graph(
        nodes,
        "crash",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_a_crash_is_an_error_and_not_the_end_of_this_process() -> None:
    with pytest.raises(InputError, match=r"crashes compiling it\.onnx.*onnxruntime"):
        OpenVinoCpu.open_bytes(crashing_model().SerializeToString(), label="it.onnx")


def test_a_process_is_kept_for_the_next_graph_and_replaced_once_it_ends() -> None:
    sound = lowered(tiny_model()).SerializeToString()
    assert openvino_probe.compile_elsewhere(sound) == 0
    kept = openvino_probe._kept
    # What OpenVINO refuses ends no process.
    assert openvino_probe.compile_elsewhere(b"nothing of the kind") == 0
    assert openvino_probe.compile_elsewhere(sound) == 0
    assert kept is not None
    assert openvino_probe._kept is kept
    assert openvino_probe.compile_elsewhere(crashing_model().SerializeToString()) not in (0, 1, 2)
    assert openvino_probe._kept is None
    assert openvino_probe.compile_elsewhere(sound) == 0
    assert openvino_probe._kept is not kept


def test_a_kept_process_that_somebody_ended_is_no_crash() -> None:
    sound = lowered(tiny_model()).SerializeToString()
    assert openvino_probe.compile_elsewhere(sound) == 0
    kept = openvino_probe._kept
    assert kept is not None
    kept._process.kill()
    assert openvino_probe.compile_elsewhere(sound) == 0


def test_what_does_not_end_is_a_line_and_the_next_graph_has_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = lowered(tiny_model()).SerializeToString()
    with monkeypatch.context() as impatient:
        impatient.setattr(openvino_probe, "_TIMEOUT_S", 0.001)
        with pytest.raises(InputError, match=r"OpenVINO does not get done compiling it\.onnx"):
            openvino_probe.probe(sound, "it.onnx")
    assert openvino_probe._kept is None
    openvino_probe.probe(sound, "it.onnx")


def test_an_idle_process_ends_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from odm_deploy.runtimes.onnx import openvino_probe; openvino_probe._IDLE_S = 0.1; openvino_probe._main()"
    monkeypatch.setattr(openvino_probe, "_COMMAND", ("-c", code))
    monkeypatch.setattr(openvino_probe, "_kept", None)
    sound = lowered(tiny_model()).SerializeToString()
    assert openvino_probe.compile_elsewhere(sound) == 0
    kept = openvino_probe._kept
    assert kept is not None
    assert kept.code == 0
    assert openvino_probe.compile_elsewhere(sound) == 0
    openvino_probe._end_kept()


def test_the_default_runtime_passes_openvino_over_and_says_why(tmp_path: Path) -> None:
    onnx.save(crashing_model(), tmp_path / "model.onnx")
    with open_runtime(tmp_path / "model.onnx") as runtime:
        assert runtime.name == "onnxruntime"
        assert any("crashes openvino" in reason for reason in runtime.passed_over)
        assert runtime.run({"x": random_images(8, 8)})["y"].shape == (1, 3, 8, 8)


def test_convolutional_networks_are_compiled_at_once() -> None:
    assert not needs_probe(lowered(tiny_model()))
    assert needs_probe(crashing_model())


@pytest.mark.parametrize("bits", [4, 8])
def test_openvino_computes_a_swinir_that_is_quantized_throughout(bits: int) -> None:
    model = quantized(tiny_network("swinir"), lambda *_: (bits, "asymmetric", "per_channel"))
    images = random_images(13, 18)
    with OpenVinoCpu.open_bytes(lowered(model).SerializeToString()) as runtime:
        found = runtime.upscale(images)
    difference = np.abs(found - model(torch.from_numpy(images)).numpy())
    # Codes on a tie may flip and spread; anything systematic moves most pixels.
    assert np.median(difference) < 0.5
    assert found.shape == (1, 3, 26, 36)
