"""Broken, hostile and foreign files to every verb: a documented exit code, one clear line, nothing left behind."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.command_line import run_cli, without_progress


class Evil:
    """Runs a command when unpickled carelessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def broken(tmp_path, tiny_checkpoint, tiny_bundle):
    """A folder of files that are not what their names say."""
    folder = tmp_path / "broken"
    folder.mkdir()
    data = tiny_checkpoint.read_bytes()
    (folder / "text.pt").write_text("hello")
    (folder / "cut.pt").write_bytes(data[: len(data) // 2])
    (folder / "empty.pt").write_bytes(b"")
    torch.save({"a": Evil(folder / "PWNED")}, folder / "evil.pt")
    (folder / "pickle.pt").write_bytes(pickle.dumps(Evil(folder / "PWNED")))
    torch.save({"a": torch.zeros(3)}, folder / "weights.pt")
    (folder / "noise.png").write_bytes(np.random.default_rng(0).bytes(200))
    (folder / "text.onnx").write_text("x")
    (folder / "empty.onnx").write_bytes(b"")
    proto = (tiny_bundle / "model.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(proto[: len(proto) // 2])
    (folder / "engine.plan").write_text("x")
    (folder / "empty").mkdir()
    (folder / "nothing").mkdir()
    (folder / "nothing" / "manifest.json").write_text("{}")
    return folder


@pytest.fixture
def classifier(tmp_path):
    """A valid ONNX file of something that is no upscaler: a small perceptron on vectors."""
    weight = numpy_helper.from_array(np.ones((10, 4), np.float32), "w")
    node = helper.make_node("MatMul", ["features", "w"], ["scores"], name="fc")
    graph = helper.make_graph(
        [node],
        "mlp",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 10])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4])],
        [weight],
    )
    path = tmp_path / "mlp.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def refused(outcome):
    """Exit code 1..4 and exactly one line on stderr, on which nothing but the error stands."""
    assert outcome.code in (1, 2, 3, 4), outcome
    (line,) = without_progress(outcome.stderr).strip().splitlines()
    assert line.startswith("error: ")
    assert len(line) > 30
    return line


@pytest.mark.parametrize(
    "name",
    ["missing.pt", "text.pt", "cut.pt", "empty.pt", "evil.pt", "pickle.pt", "weights.pt", "noise.png", "empty"],
)
def test_a_broken_checkpoint_is_one_line_and_leaves_nothing(broken, tiny_set, name):
    out = broken / "out"
    before = sorted(broken.iterdir())
    line = refused(run_cli("export", broken / name, "-o", out))
    assert name in line
    if name.endswith(".pt"):
        assert name in refused(run_cli("inspect", broken / name))
        assert name in refused(run_cli("eval", broken / name, "--dataset", tiny_set))
    assert sorted(broken.iterdir()) == before


@pytest.mark.parametrize("name", ["missing.onnx", "text.onnx", "empty.onnx", "cut.onnx"])
@pytest.mark.parametrize("verb", ["lint", "inspect", "bench", "verify", "eval"])
def test_a_broken_onnx_file_is_one_line(broken, tiny_checkpoint, tiny_set, verb, name):
    options = {
        "verify": ("--against", tiny_checkpoint, "--images", tiny_set / "LR_bicubic" / "X2"),
        "eval": ("--dataset", tiny_set, "--scale", 2),
    }
    assert name in refused(run_cli(verb, broken / name, *options.get(verb, ())))


@pytest.mark.parametrize("name", ["missing", "empty", "nothing"])
@pytest.mark.parametrize("verb", ["inspect", "bench", "verify", "upscale"])
def test_a_broken_bundle_is_one_line_and_leaves_nothing(broken, tiny_set, verb, name):
    image = next((tiny_set / "HR").iterdir())
    arguments = {
        "verify": ("verify", broken / name, "--images", tiny_set / "LR_bicubic" / "X2"),
        "upscale": ("upscale", image, broken / "out.png", "--model", broken / name),
    }
    refused(run_cli(*arguments.get(verb, (verb, broken / name))))
    assert not (broken / "out.png").exists()


@pytest.mark.parametrize("verb", ["bench", "inspect"])
def test_plan_that_is_none(broken, verb):
    refused(run_cli(verb, broken / "engine.plan"))


def test_broken_and_missing_images_are_named_and_nothing_is_written(broken, tiny_bundle, tiny_set):
    for source in ("noise.png", "missing.png", "text.pt", "empty"):
        line = refused(run_cli("upscale", broken / source, broken / "out.png", "--model", tiny_bundle))
        assert source in line
    for images in ("noise.png", "missing", "empty", "missing/*.png"):
        refused(run_cli("verify", tiny_bundle, "--images", broken / images))
    refused(run_cli("eval", tiny_bundle, "--dataset", broken))
    refused(run_cli("verify", tiny_bundle, "--images", tiny_set / "LR_bicubic" / "X2", "--truth", broken))
    assert not (broken / "out.png").exists()


def test_onnx_of_something_else(classifier, tiny_checkpoint, tiny_set):
    images = tiny_set / "LR_bicubic" / "X2"
    refused(run_cli("verify", classifier, "--against", tiny_checkpoint, "--images", images))
    refused(run_cli("eval", classifier, "--dataset", tiny_set, "--scale", 2))
    refused(run_cli("bench", classifier, "--seconds", "0.1"))
    image = next(images.iterdir())
    refused(run_cli("upscale", image, classifier.parent / "out.png", "--model", classifier))


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "CHECKPOINT", "--layout", "nhwc"),
        ("export", "CHECKPOINT", "--order", "bgr"),
        ("export", "CHECKPOINT", "--shapes", "huge"),
        ("export", "CHECKPOINT", "--builder", "trt99"),
        ("verify", "BUNDLE", "--images", "IMAGES", "--runtime", "abacus"),
        ("verify", "BUNDLE", "--images", "IMAGES", "--precision", "bf16", "--runtime", "onnxruntime"),
        ("verify", "BUNDLE", "--images", "IMAGES", "--threads", "0"),
        ("inspect", "BUNDLE", "--shapes", "3x3"),
        ("eval", "BUNDLE", "--dataset", "SET", "--network", "edsr"),
    ],
)
def test_calls_that_make_no_sense_are_usage_errors(arguments, tiny_checkpoint, tiny_bundle, tiny_set):
    values = {"CHECKPOINT": tiny_checkpoint, "BUNDLE": tiny_bundle, "SET": tiny_set,
              "IMAGES": tiny_set / "LR_bicubic" / "X2"}  # fmt: skip
    outcome = run_cli(*(values.get(word, word) for word in arguments))
    refused(outcome)
    assert outcome.code == 2
