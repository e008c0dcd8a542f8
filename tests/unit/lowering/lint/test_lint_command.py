"""`odm-deploy lint`: exit codes, JSON, bundles, and one clear line for what is no ONNX."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from odm_deploy.cli.lint import command
from odm_deploy.errors import GateError, InputError, UsageError
from tests.qdq_graphs import CHANNELS, LEGAL, TRAPS, Builder


def run(*arguments):
    """Invoke the command and let its own errors through."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
    return result.stdout, result.exception


@pytest.fixture
def saved(tmp_path):
    def save(model, name="model.onnx"):
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return save


def test_clean_graph_passes(saved):
    output, error = run(saved(LEGAL["plain"]()), "--json")
    assert error is None
    assert json.loads(output) == {"findings": []}


@pytest.mark.parametrize("label", ["dead channel", "zero point left out", "ReLU after DQ"])
def test_gate_fails_on_what_tensorrt_would_not_run(saved, label):
    output, error = run(saved(TRAPS[label].build()), "--json")
    assert isinstance(error, GateError)
    assert error.exit_code == 3
    (finding,) = json.loads(output)["findings"]
    assert finding["rule"] == TRAPS[label].rule
    assert finding["node"] == TRAPS[label].node
    assert finding["message"]
    assert finding["fix"]


@pytest.mark.parametrize("label", ["opset 21", "Clip before Q", "ReLU before Q"])
def test_warnings_do_not_fail_the_gate(saved, label):
    output, error = run(saved(TRAPS[label].build()))
    assert error is None
    assert f"[{TRAPS[label].rule}]" in output


def test_layer_that_fix_leaves_in_float_fails_the_gate(saved, tmp_path):
    """Neither a rule nor the builder knows that it was quantized."""
    b = Builder()
    codes = b.codes(CHANNELS, 2, 3, 3, low=0, high=255).astype(np.uint8)
    codes[0, 0, 0] = [0, 255, 3]
    weights = [b.constant("w_q", codes), b.constant("w_s", np.float32(0.01)), b.constant("w_z", np.uint8(7))]
    grouped = b.op("DequantizeLinear", weights, "w_dq")
    layer = b.op("Conv", [b.qdq("x", "a", 0.5, np.uint8(100)), grouped], "layer", group=CHANNELS // 2)
    output, error = run("--fix", saved(b.model(layer)), "-o", tmp_path / "fixed.onnx")
    assert isinstance(error, GateError)
    assert error.why == "layer"
    assert "left: layer runs in float: its weights have codes beyond 8 bits" in output
    assert (tmp_path / "fixed.onnx").is_file()


def test_bundle_folder_is_accepted(saved):
    path = saved(TRAPS["weights only"].build())
    output, error = run(path.parent)
    assert isinstance(error, GateError)
    assert "half-quantized" in output


def test_rules_are_listed_with_trap_and_fix():
    listed = json.loads(run("--rules", "--json")[0])["rules"]
    assert {entry["rule"] for entry in listed} == {trap.rule for trap in TRAPS.values()}
    assert all(entry["trap"] and entry["fix"] for entry in listed)
    assert "scale-shape" in run("--rules")[0]


@pytest.mark.parametrize("content", [b"x\n", b"", b"hello world"])
def test_what_is_no_onnx_is_an_input_error(tmp_path, content):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    assert isinstance(run(path)[1], InputError)


@pytest.mark.parametrize("kept", [5, 200, -1])
def test_truncated_onnx_is_an_input_error(saved, kept):
    path = saved(LEGAL["plain"]())
    path.write_bytes(path.read_bytes()[:kept])
    assert isinstance(run(path)[1], InputError)


def test_missing_file_folder_without_onnx_and_no_argument(tmp_path):
    assert isinstance(run(tmp_path / "nowhere.onnx")[1], InputError)
    assert isinstance(run(tmp_path)[1], InputError)
    assert isinstance(run()[1], UsageError)


def test_external_weights_that_are_gone_are_an_input_error(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(LEGAL["plain"](), path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    assert run(path)[1] is None
    (tmp_path / "weights.bin").unlink()
    assert isinstance(run(path)[1], InputError)


def test_linting_imports_no_torch(saved):
    path = saved(LEGAL["plain"]())
    code = (
        f"import sys; from odm_deploy.lowering.lint import lint; lint({str(path)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_graph_that_quantizes_in_branches_is_not_said_to_be_float(saved, capsys):
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[1,3,"h","w"] x, bool c) => (float[1,3,"h","w"] y) <float s = {0.1}, int8 z = {0}> {
            y = If (c) <
                then_branch = t () => (float[1,3,"h","w"] a) {
                    q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z)
                },
                else_branch = e () => (float[1,3,"h","w"] b) { b = Identity(x) }
            >
        }
    """)
    command.callback(saved(model), False, False, None, False)
    assert "no findings, but branches are not looked into: If y quantizes in its own" in capsys.readouterr().err


def test_names_do_not_break_a_finding_into_lines(saved):
    model = TRAPS["dead channel"].build()
    for node in model.graph.node:
        node.name += "\nerror: of nobody \x1b[31m"
    output, _ = run(saved(model))
    assert [line.split()[0] for line in output.splitlines()] == ["error", "fix:"]
    assert "\\nerror: of nobody \\x1b[31m" in output
