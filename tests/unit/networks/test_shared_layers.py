"""Layers that run several times, as in recursive networks: one grid and one set of codes, a quantizer for each run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odm_deploy import quantize
from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.lowering.lower import lower
from odm_deploy.lowering.metadata import layer_of_run, read_taps, run_name
from odm_deploy.networks.trusted_builders import trusting
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.observers import observe
from odm_deploy.runtimes.onnx.onnx_runtime import OnnxRuntime
from tests.factories import OPENERS, random_images


class Cascade(nn.Module):
    """A block of two convolutions that runs three times, with fusions of what came before, as in CARN-M."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, features, 3, padding=1)
        self.grouped = nn.Conv2d(features, features, 3, padding=1, groups=2)
        self.plain = nn.Conv2d(features, features, 1)
        # Under a second name, as CARN's blocks are.
        self.same = self.plain
        self.fuse = nn.Conv2d(2 * features, features, 1)
        self.up = nn.Conv2d(features, 12, 3, padding=1)

    def forward(self, x):
        deep = first = self.head(x)
        for _ in range(2):
            deep = self.fuse(torch.cat([self.block(deep), first], 1))
        return F.pixel_shuffle(self.up(self.block(deep)), 2) + F.interpolate(x, scale_factor=2)

    def block(self, x):
        return F.relu(self.same(F.relu(self.grouped(x))) + x)


BUILDER = "tests.unit.networks.test_shared_layers:Cascade"
RUNS = [
    f"net.{name}" for name in ("grouped", "plain", "fuse", "grouped:1", "plain:1", "fuse:1", "grouped:2", "plain:2")
]


def images(count):
    return [torch.from_numpy(random_images(24, 30, seed=seed)) for seed in range(count)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return quantize(Cascade(), 8, images(2), builder=BUILDER)


def test_they_are_quantized(model):
    assert list(model.layers) == ["net.grouped", "net.plain", "net.fuse"]


def test_the_grid_is_chosen_on_the_inputs_of_all_runs(model):
    seen = []
    torch.manual_seed(1)
    network = quantize(Cascade(), 8, images(1)).network
    float_network = type(network)(network.config, Cascade())
    handle = float_network.net.plain.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].max())))
    observers = observe(float_network, images(2), ["net.plain"])
    handle.remove()
    assert len(seen) == 6
    assert observers["net.plain"].maximum == max(seen)


def test_every_run_has_its_tap_and_its_name(model):
    proto = lower(model)
    assert [tap.layer for tap in read_taps(proto)] == RUNS
    named = [node.name for node in proto.graph.node if node.op_type == "Conv"]
    assert named == ["net.head", *RUNS, "net.up"]
    assert [layer_of_run(name) for name in RUNS[:4]] == ["net.grouped", "net.plain", "net.fuse", "net.grouped"]
    assert [run_name("a", run) for run in range(3)] == ["a", "a:1", "a:2"]
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if ".scale_x" in t.name}
    assert len({float(scale) for name, scale in scales.items() if name.startswith("net.plain.")}) == 1


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_compute_the_same(model, runtime):
    x = random_images(18, 26, seed=5)
    expected = model(torch.from_numpy(x)).numpy()
    with OPENERS[runtime](lower(model).SerializeToString()) as opened:
        assert np.quantile(np.abs(opened.upscale(x) - expected), 0.95) < 0.5


def test_the_proof_looks_at_every_run(model):
    crops = [random_images(24, 30, seed=3)]
    found = compare_layers(model, lower(model), OnnxRuntime.open_bytes, crops)
    assert [layer.name for layer in found][:-1] == RUNS
    assert all(layer.is_clean for layer in found)


def test_they_come_back_from_a_file(tmp_path):
    torch.manual_seed(1)
    model = quantize(Cascade(), 8, images(1), builder=BUILDER)
    save_model(model, tmp_path / "model.pt")
    with trusting(BUILDER):
        again = load_model(tmp_path / "model.pt")
    assert torch.equal(again(images(1)[0]), model(images(1)[0]))


class Repeated(nn.Module):
    """A convolution that runs twice on one image of features, computed anew each time, and once on others."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.up = (nn.Conv2d(inputs, 12, 3, padding=1) for inputs in (3, 12, 12))

    def forward(self, x):
        x = self.head(x)
        twice = self.body(F.relu(x)) + 0.5 * self.body(F.relu(x))
        return F.pixel_shuffle(self.up(self.body(twice)), 2)


def test_runs_on_the_same_input_are_one_in_the_graph_and_in_the_proof():
    torch.manual_seed(1)
    model = quantize(Repeated(), 8, images(2))
    proto, crops = lower(model), [random_images(24, 30, seed=3)]
    assert [tap.layer for tap in read_taps(proto)] == ["net.body", "net.body:1"]
    found = compare_layers(model, proto, OnnxRuntime.open_bytes, crops)
    assert [layer.name for layer in found][:-1] == ["net.body", "net.body:1"]
    assert all(layer.is_clean for layer in found)
    weight = next(each for each in proto.graph.initializer if each.name == "net.body.codes")
    codes = np.array(onnx.numpy_helper.to_array(weight))
    codes[0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(codes, weight.name))
    assert not all(layer.is_clean for layer in compare_layers(model, proto, OnnxRuntime.open_bytes, crops))
