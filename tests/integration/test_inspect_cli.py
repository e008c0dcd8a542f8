"""`odm-deploy inspect`: what the real builder runs as int8, and the grids of a model.pt."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest

from odm_deploy import quantize
from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.grid import Grid
from odm_deploy.installing import install_extra
from odm_deploy.machine import builders
from odm_deploy.machine.builders import can_build, find_builder
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import freeze
from tests.command_line import run_cli
from tests.conftest import REPOSITORY
from tests.factories import quantized, random_images, tiny_network
from tests.qdq_graphs import CHANNELS, LEGAL, TRAPS, Builder

RTX = find_builder("tensorrt_rtx")
needs_rtx = pytest.mark.skipif(not can_build(RTX), reason=RTX.problem or "TensorRT-RTX cannot build here")


@needs_rtx
def test_bundle_without_an_engine_is_built_to_look_at_it(tiny_bundle, tiny_checkpoint):
    outcome = run_cli("inspect", tiny_bundle, "--shapes", "1x3x24x32", "--json")
    assert outcome.code == 0, outcome.stderr
    document = outcome.document
    assert document["int8_layers"] == document["quantized_layers"] == 5
    assert 0 < document["int8_macs"] == document["quantized_macs"] < document["macs"]
    # 8 -> 8 channels, 3x3, on every pixel of the input.
    first = next(layer for layer in document["layers"] if layer["name"] == "body.0.body.0")
    assert first["macs"] == 24 * 32 * 8 * 8 * 9
    assert (first["precision"], first["reason"]) == ("int8", "")
    floats = {layer["name"]: layer["reason"] for layer in document["layers"] if not layer["quantized"]}
    assert floats == dict.fromkeys(["head.0", "tail.0.0", "tail.1"], "float in this model")
    # What the int8 holds comes from the manifest.
    bits = {layer["name"]: (layer["weight_bits"], layer["activation_bits"]) for layer in document["layers"]}
    quantized = {
        name: (layer.weight_bits, layer.grid.bits) for name, layer in load_model(tiny_checkpoint).layers.items()
    }
    assert bits == {**dict.fromkeys(floats, (None, None)), **quantized}
    assert "built just now" in document["source"]


@needs_rtx
def test_recorded_layers_are_read_without_building(tiny_checkpoint, tmp_path):
    folder = tmp_path / "bundle"
    assert run_cli("export", tiny_checkpoint, "-o", folder, "--shapes", "1x3x24x32").code == 0
    recorded = run_cli("inspect", folder, "--shapes", "1x3x24x32", "--json")
    assert "when the bundle was built" in recorded.document["source"]
    assert "building" not in recorded.stderr
    # What the manifest says is what is shown.
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for row in manifest["engine"]["layers"]:
        row["precision"] = "fp32"
    path.write_text(json.dumps(manifest))
    outcome = run_cli("inspect", folder, "--json")
    assert outcome.code == 3
    assert outcome.document["int8_layers"] == 0
    assert "5 of 5 quantized layers do not run as int8" in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1


@needs_rtx
def test_people_get_a_table_and_the_count(tiny_bundle):
    outcome = run_cli("inspect", tiny_bundle / "model.onnx", "--shapes", "1x3x24x32")
    assert outcome.code == 0
    assert "int8: 5 of 5 quantized layers" in outcome.stdout
    assert "body.1.body.2" in outcome.stdout


@needs_rtx
def test_graph_that_quantizes_nothing_fails_the_gate(tmp_path):
    b = Builder()
    onnx.save(b.model(b.conv("x", b.float_weights())), tmp_path / "float.onnx")
    outcome = run_cli("inspect", tmp_path / "float.onnx", "--shapes", "1x16x24x32")
    assert outcome.code == 3
    assert "nothing in" in outcome.stderr
    assert "none of its 1 convolutions" in outcome.stderr


@needs_rtx
def test_layers_whose_work_cannot_be_counted_are_still_quantized(tmp_path):
    # Behind an operator of another domain ONNX infers no shapes.
    model = LEGAL["plain"]()
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    for node in model.graph.node:
        if node.name in ("a_q", "a_dq"):
            node.domain = "com.microsoft"
    stem = np.ones((CHANNELS, CHANNELS, 1, 1), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(stem, "stem_w"))
    model.graph.node.insert(0, onnx.helper.make_node("Conv", ["x", "stem_w"], ["stem"], name="stem"))
    next(node for node in model.graph.node if node.name == "a_q").input[0] = "stem"
    onnx.save(model, tmp_path / "model.onnx")
    outcome = run_cli("inspect", tmp_path / "model.onnx", "--shapes", "1x16x24x32", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.document["int8_layers"] == outcome.document["quantized_layers"] == 1


@needs_rtx
@pytest.mark.parametrize(("label", "pointed"), [("ReLU after DQ", True), ("two average pools", False)])
def test_lint_is_named_only_where_it_has_something_to_say(tmp_path, label, pointed):
    b = Builder()
    b.batch = 1
    if pointed:
        model = TRAPS[label].build()
    else:
        # Pooling by 8 leaves one pixel of an 8x8 image; no graph of dynamic size shows that.
        pooled = b.op("AveragePool", ["x"], "pooled", kernel_shape=[8, 8], strides=[8, 8])
        squeezed = b.op("Conv", [pooled, b.constant("few", np.ones((4, CHANNELS, 1, 1), np.float32))], "squeezed")
        model = b.model(b.op("Conv", [b.qdq(squeezed, "a"), b.weights((CHANNELS, 4, 1, 1))], "layer"))
    onnx.save(model, tmp_path / "model.onnx")
    outcome = run_cli("inspect", tmp_path / "model.onnx", "--shapes", "1x16x8x8")
    assert outcome.code == 3
    assert ("see odm-deploy lint" in outcome.stderr) == pointed
    assert ("lint knows nothing about it either" in outcome.stderr) != pointed


@needs_rtx
def test_small_layers_that_no_builder_takes_are_told_and_no_gate(tmp_path):
    b = Builder()
    b.batch = 1
    body = b.conv(b.qdq("x", "a"), b.weights())
    # Channel attention, by a layer of four channels on one pixel.
    pooled = b.op("AveragePool", ["x"], "pooled", kernel_shape=[64, 64], strides=[64, 64])
    squeezed = b.op("Conv", [pooled, b.constant("few", np.ones((4, CHANNELS, 1, 1), np.float32))], "squeezed")
    few = b.constant("few_q", b.codes(CHANNELS, 4, 1, 1), onnx.TensorProto.INT8)
    scales = b.constant("few_s", np.full(CHANNELS, 0.01, np.float32))
    weights = b.op(
        "DequantizeLinear", [few, scales, b.constant("few_z", np.zeros(CHANNELS, np.int8))], "few_dq", axis=0
    )
    attention = b.op("Conv", [b.qdq(squeezed, "s"), weights], "attention")
    onnx.save(b.model(b.op("Mul", [body, attention], "y")), tmp_path / "model.onnx")
    outcome = run_cli("inspect", tmp_path / "model.onnx", "--shapes", "1x16x64x64")
    assert outcome.code == 0, outcome.stderr
    assert "int8: 1 of 2 quantized layers, 100.0% of all MACs, and 0.0% of the MACs are in the other" in outcome.stdout


def test_checkpoint_is_listed_with_its_grids(tiny_checkpoint):
    outcome = run_cli("inspect", tiny_checkpoint, "--json")
    assert outcome.code == 0
    document = outcome.document
    assert (document["network"], document["scale"], document["metadata"]) == ("edsr", 2, {"method": "random"})
    model = load_model(tiny_checkpoint)
    assert [row["name"] for row in document["layers"]] == list(model.layers)
    for row in document["layers"]:
        grid = model.layers[row["name"]].grid
        assert (row["scale"], row["zero_point"], row["bits"]) == (grid.scale, grid.zero_point, grid.bits)
        assert row["bit_operations"] == 2 * row["macs"] * row["weight_bits"] * row["bits"] > 0
    everything = [*document["layers"], *document["unquantized"]]
    assert sum(row["storage_bytes"] for row in everything) == document["storage_bytes"]
    assert {row["name"] for row in document["unquantized"]} >= {"head.0", "tail.1"}


@pytest.mark.parametrize("name", ["MODEL.PT", "model", "model.v2"])
def test_a_checkpoint_is_one_whatever_its_name(name, tiny_checkpoint, tiny_set, tmp_path):
    other = tmp_path / name
    shutil.copy(tiny_checkpoint, other)
    assert run_cli("inspect", other, "--json").document == run_cli("inspect", tiny_checkpoint, "--json").document
    found, expected = (
        run_cli("eval", path, "--dataset", tiny_set, "--json").document for path in (other, tiny_checkpoint)
    )
    assert found == expected


def test_checkpoint_costs_what_the_convention_counts(tiny_checkpoint):
    honest, paper = (
        run_cli("inspect", tiny_checkpoint, "--convention", convention, "--json").document
        for convention in ("honest", "paper")
    )
    # The papers count neither weight scales nor, for EDSR, ranges; and one layer's input as float.
    assert paper["storage_bytes"] < honest["storage_bytes"]
    assert paper["bit_operations"] > honest["bit_operations"]
    shown = run_cli("inspect", tiny_checkpoint)
    assert "tera-BitOPs for a 1920x1080 output (what the file holds and an engine computes)" in shown.stdout
    assert "body.1.body.2" in shown.stdout
    assert "body.1.body.2" in run_cli("inspect", tiny_checkpoint).stdout


def test_what_says_nothing_of_a_file_is_refused(tiny_checkpoint, tiny_bundle):
    for words in (("--shapes", "1x3x24x32"), ("--runtime", "openvino"), ("--rebuild",), ("--timeout", "9")):
        outcome = run_cli("inspect", tiny_checkpoint, *words)
        assert outcome.code == 2
        assert f"error: {words[0]} with {tiny_checkpoint}: it is no graph yet" in outcome.stderr
    outcome = run_cli("inspect", tiny_bundle, "--convention", "paper")
    assert outcome.code == 2
    assert "error: --convention with" in outcome.stderr


def bundle_with_signals(folder, *, signals: bool):
    network = tiny_network(scale=2, blocks=1, features=16)
    # At 7 bits nothing saturates, on any CPU.
    model = quantized(network, lambda *_: (7, "symmetric", "per_channel"))
    # Behind a rectifier grids start at zero, as calibration makes them.
    starts = {"body.0.body.2": 0}
    layers = {
        name: FrozenLayer(
            layer.weight_codes, replace(layer.grid, zero_point=starts.get(name, layer.grid.zero_point)), layer.bias
        )
        for name, layer in model.layers.items()
    }
    names = ["head.0", "body.0.body.2", "body.0.sum", "body.1", "sum", "tail.1"] if signals else []
    grid = Grid.from_range(-300.0, 300.0, 8)
    frozen = freeze(network, layers, signals={f"{name}.output": grid for name in names})
    save_model(frozen, folder / "model.pt")
    assert run_cli("export", folder / "model.pt", "-o", folder / "bundle", "--no-engine", "--target", "auto").code == 0
    return folder / "bundle"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_on_cpus_are_asked_what_they_execute(tmp_path, runtime):
    bundle = bundle_with_signals(tmp_path, signals=True)
    outcome = run_cli("inspect", bundle, "--runtime", runtime, "--shapes", "1x3x24x32", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.document["int8_layers"] == outcome.document["quantized_layers"] == 6
    assert runtime in outcome.document["source"]


def test_onnxruntime_runs_convolutions_whose_output_is_float_as_float_and_inspect_says_so(tmp_path):
    bundle = bundle_with_signals(tmp_path, signals=False)
    outcome = run_cli("inspect", bundle, "--runtime", "onnxruntime", "--shapes", "1x3x24x32", "--json")
    assert outcome.code == 3
    floats = {layer["name"] for layer in outcome.document["layers"] if layer["precision"] == "fp32"}
    assert {"head.0", "body.0.body.2", "body.1", "tail.1"} <= floats
    assert "quantizes its output" in outcome.stderr
    assert "builder" not in outcome.stderr
    # OpenVINO needs no such quantizers.
    assert run_cli("inspect", bundle, "--runtime", "openvino", "--shapes", "1x3x24x32").code == 0


def test_float_layers_are_found_under_the_names_that_onnxruntime_gives_them(tiny_bundle):
    shown = run_cli("inspect", tiny_bundle, "--runtime", "onnxruntime", "--shapes", "1x3x24x32")
    head = next(line for line in shown.stdout.splitlines() if "head.0" in line)
    assert "float in this model" in head
    assert "missing" not in shown.stdout
    assert "engine" not in shown.stdout + shown.stderr


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets of x86")
def test_layers_whose_products_would_saturate_on_this_cpu_are_said_to_be_float_for_that(tmp_path):
    image = random_images(24, 24)[0].transpose(1, 2, 0).astype(np.uint8)
    save_model(quantize(tiny_network(), 8, [image]), tmp_path / "model.pt")
    assert run_cli("export", tmp_path / "model.pt", "-o", tmp_path / "bundle", "--no-engine").code == 0
    inspect = ["-m", "odm_deploy", "inspect", "bundle", "--runtime", "openvino", "--shapes", "1x3x24x32"]
    without_vnni = {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(REPOSITORY), "PATH": ""}
    outcome = subprocess.run([sys.executable, *inspect], env=without_vnni, cwd=tmp_path, capture_output=True, text=True)
    assert outcome.returncode == 3, outcome.stderr
    last = outcome.stderr.splitlines()[-1]
    assert last.endswith("its 8-bit products may saturate on this CPU without VNNI: quantize with --any-cpu")


def test_a_runtime_that_is_no_cpu_runtime_is_refused(tmp_path):
    bundle = bundle_with_signals(tmp_path, signals=False)
    outcome = run_cli("inspect", bundle, "--runtime", "tensorrt")
    assert outcome.code == 2
    assert "use onnxruntime, openvino" in outcome.stderr


def test_a_fix_is_told_once_for_all_that_want_it_and_the_command_that_does_it_at_the_end(tmp_path):
    onnx.save(TRAPS["QLinearConv"].build(), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    again = onnx.NodeProto.FromString(
        next(n for n in graph.graph.node if n.op_type == "QLinearConv").SerializeToString()
    )
    again.name, again.output[0] = "again", "again"
    graph.graph.node.append(again)
    onnx.save(graph, tmp_path / "model.onnx")
    outcome = run_cli("lint", tmp_path / "model.onnx")
    assert outcome.code == 3
    assert [line.split()[0] for line in outcome.stdout.splitlines()] == ["error", "error", "fix:"]
    # It would rewrite none of these.
    assert "odm-deploy lint --fix" not in outcome.stderr
    assert "; export in the QDQ format" in outcome.stderr
    onnx.save(TRAPS["uint8 zero point 128"].build(), tmp_path / "model.onnx")
    outcome = run_cli("lint", tmp_path / "model.onnx")
    assert f"odm-deploy lint --fix {tmp_path / 'model.onnx'} -o fixed.onnx" in outcome.stderr


def test_operators_on_integers_are_not_called_float(tmp_path):
    onnx.save(TRAPS["QLinearConv"].build(), tmp_path / "model.onnx")
    outcome = run_cli("inspect", tmp_path / "model.onnx", "--runtime", "onnxruntime")
    assert outcome.code == 3
    assert (
        "is quantized in the QDQ format, the only one that is judged here: layer: operator QLinearConv"
        in outcome.stderr
    )
    assert "export in the QDQ format" in outcome.stderr


def test_what_lint_cannot_fix_is_left_and_not_taken(tmp_path):
    onnx.save(TRAPS["QLinearConv"].build(), tmp_path / "model.onnx")
    outcome = run_cli("lint", "--fix", tmp_path / "model.onnx", "-o", tmp_path / "fixed.onnx")
    assert outcome.code == 3
    assert outcome.stdout.splitlines()[0] == "fixed: nothing"
    assert "left: layer: " in outcome.stdout
    assert "nothing was written" in outcome.stderr
    assert "export in the QDQ format" in outcome.stderr
    assert not (tmp_path / "fixed.onnx").exists()


def test_without_a_builder_the_layers_on_this_cpu_are_shown_and_said_to_be_that(tiny_bundle, monkeypatch):
    nothing = builders.Builder("tensorrt_rtx", "", "tensorrt_rtx is not installed")
    monkeypatch.setattr(builders, "find_builders", lambda: (nothing,))
    shown = run_cli("inspect", tiny_bundle, "--shapes", "1x3x24x32", "--json")
    asked = run_cli("inspect", tiny_bundle, "--shapes", "1x3x24x32", "--json", "--runtime", "openvino")
    assert (shown.code, shown.document) == (asked.code, asked.document)
    assert "tensorrt_rtx is not installed; so these are the layers that openvino runs on this CPU" in shown.stderr
    assert f"Those of an engine: {install_extra('rtx')}" in shown.stderr
    # Who wants an engine looked at gets no CPU's answer for it.
    rebuilt = run_cli("inspect", tiny_bundle, "--shapes", "1x3x24x32", "--rebuild")
    assert (rebuilt.code, rebuilt.stdout) == (4, "")
