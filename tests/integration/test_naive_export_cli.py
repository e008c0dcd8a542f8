"""Exports as people write them by hand: each trap is caught by `lint`, and where lint is skipped, by what runs."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from odm_deploy.machine.builders import can_build, find_builder
from tests.command_line import run_cli

RTX = find_builder("tensorrt_rtx")
needs_rtx = pytest.mark.skipif(not can_build(RTX), reason=RTX.problem or "TensorRT-RTX cannot build here")


class Naive:
    """A good bundle's graph, and the mistakes one can make in it."""

    def __init__(self, path):
        self.path = path
        self.model = onnx.load(path)

    def save(self):
        onnx.save(self.model, self.path)

    def array(self, name):
        return numpy_helper.to_array(self._tensor(name))

    def put(self, name, array):
        self._tensor(name).CopyFrom(numpy_helper.from_array(np.asarray(array), name))

    def quantizers(self):
        return [node for node in self.model.graph.node if node.op_type == "QuantizeLinear"]

    def unshift(self, *, bounds):
        """8-bit asymmetric ranges written as int8 with zero point 0: no shift, the original padding and bias."""
        graph = self.model.graph
        nodes = {node.output[0]: node for node in graph.node}
        layers = {node.name: node for node in graph.node if node.op_type == "Conv"}
        for node in list(graph.node):
            if node.op_type != "Sub" or not node.output[0].endswith(".centered"):
                continue
            layer = node.output[0].removesuffix(".centered")
            pad = nodes[node.input[0]]
            scale = self.array(f"{layer}.scale_x")
            zero = 128 - np.rint(self.array(f"{layer}.center") / scale)
            quantize = nodes[f"{layer}.codes_x"]
            weight = self.array(f"{layer}.codes") * self.array(f"{layer}.scale_w").reshape(-1, 1, 1, 1)
            shifted = self.array(f"{layer}.bias_shifted")
            self.put(f"{layer}.bias_shifted", shifted - self.array(f"{layer}.center") * weight.sum((1, 2, 3)))
            attribute = next(each for each in layers[layer].attribute if each.name == "pads")
            attribute.ints[:] = [1] * 4
            source = pad.input[0]
            if bounds:
                for op, code in (("Max", -zero), ("Min", 255 - zero)):
                    limit = numpy_helper.from_array(np.float32(code * scale), f"{layer}.{op}")
                    graph.initializer.append(limit)
                    made = onnx.helper.make_node(op, [source, limit.name], [f"{layer}.{op}.y"], name=f"{layer}.{op}.n")
                    graph.node.insert(list(graph.node).index(quantize), made)
                    source = made.output[0]
            quantize.input[0] = source
            graph.node.remove(node)
            graph.node.remove(pad)

    def _tensor(self, name):
        return next(tensor for tensor in self.model.graph.initializer if tensor.name == name)


@pytest.fixture
def naive(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    return Naive(tmp_path / "bundle" / "model.onnx")


def verify(naive, tiny_set, *options):
    images = tiny_set / "LR_bicubic" / "X2"
    return run_cli("verify", naive.path.parent, "--images", images, "--json", *options)


def lint_rules(naive):
    outcome = run_cli("lint", naive.path, "--json")
    return outcome.code, {finding["rule"] for finding in outcome.document["findings"]}


def test_the_export_itself_has_none_of_it(naive, tiny_set):
    assert lint_rules(naive) == (0, set())
    assert verify(naive, tiny_set).code == 0


def test_asymmetric_range_without_its_zero_point(naive, tiny_set):
    naive.unshift(bounds=True)
    naive.save()
    code, rules = lint_rules(naive)
    assert code == 3
    assert "range-needs-zero-point" in rules
    outcome = verify(naive, tiny_set, "--no-layers")
    assert outcome.code == 3
    # Codes saturate at 127: the brighter half of every layer is lost, in a picture that still looks like one.
    assert outcome.document["identical_pixels"] < 0.9
    assert outcome.document["psnr_between_db"] > 10


def test_asymmetric_range_without_bounds_is_invisible_to_lint_and_caught_by_verify(naive, tiny_set):
    naive.unshift(bounds=False)
    naive.save()
    assert verify(naive, tiny_set, "--no-layers").code == 3


def make_scales_vectors(naive):
    for node in naive.quantizers():
        scale, zero = node.input[1:]
        naive.put(scale, naive.array(scale).reshape(1))
        naive.put(zero, naive.array(zero).reshape(1))


def make_codes_unsigned(naive):
    for node in naive.quantizers():
        naive.put(node.input[2], np.uint8(0))


@pytest.mark.parametrize(
    ("mistake", "rule"), [(make_scales_vectors, "scale-shape"), (make_codes_unsigned, "activation-uint8")]
)
def test_lint_names_the_rule(naive, mistake, rule):
    mistake(naive)
    naive.save()
    code, rules = lint_rules(naive)
    assert code == 3
    assert rule in rules


@needs_rtx
def test_scale_of_shape_1_runs_as_float_and_inspect_says_so(naive):
    make_scales_vectors(naive)
    naive.save()
    outcome = run_cli("inspect", naive.path, "--shapes", "1x3x24x32", "--json")
    assert outcome.code == 3
    document = outcome.document
    assert document["int8_layers"] < document["quantized_layers"]
    reasons = {layer["reason"] for layer in document["layers"] if layer["quantized"] and layer["precision"] != "int8"}
    assert all("[scale-shape]" in reason for reason in reasons)
    assert reasons


def test_unsigned_codes_compute_something_else(naive, tiny_set):
    make_codes_unsigned(naive)
    naive.save()
    # Negative values of the shifted range are clipped away where codes start at 0.
    assert verify(naive, tiny_set, "--no-layers").code == 3
