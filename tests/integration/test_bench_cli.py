"""`odm-deploy bench` from the shell: results, gates, and one line for everything that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from odm_deploy.bench import benchmark
from odm_deploy.bench.report import BenchReport, Measurement
from odm_deploy.bundle import Bundle
from odm_deploy.cli.program import odm_deploy as cli
from odm_deploy.errors import InputError
from odm_deploy.runtimes.base import RunTimes
from tests.sr_graphs import sr_model

QUICK = ("--size", "12x16", "--iterations", "3", "--threads", "1")


def odm_deploy(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "odm_deploy", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "model.onnx").write_bytes(sr_model().SerializeToString())
    (folder / "float.onnx").write_bytes(sr_model("float").SerializeToString())
    (folder / "fixed.onnx").write_bytes(sr_model(size=(20, 24)).SerializeToString())
    return folder


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_json_stands_alone_on_stdout(bundle: Path, runtime: str) -> None:
    done = odm_deploy("bench", bundle, "--runtime", runtime, "--batch", 2, "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["runtime"] == runtime
    assert report["shape"] == [2, 3, 16, 12]
    assert report["iterations"] == report["baseline"]["iterations"] == 3
    # Two images of 32x24 a run.
    assert report["mpix_per_s"] == pytest.approx(report["images_per_s"] * 32 * 24 / 1e6)
    assert report["speedup"] == pytest.approx(report["baseline"]["latency_ms"]["p50"] / report["latency_ms"]["p50"])
    assert report["baseline"]["model"] == "float twin (fp32)"
    assert any("multiples of 32" in limit for limit in report["limits"])
    assert {"float in this model"} < {layer["reason"] for layer in report["slow_layers"]}
    assert report["gpu"] is None


def test_the_table_names_runtime_shape_and_both_models(bundle: Path) -> None:
    done = odm_deploy("bench", bundle / "fixed.onnx", "--iterations", 2, "--threads", 1)
    assert done.returncode == 0, done.stderr
    for part in ("openvino", "1x3x20x24 (24 wide, 20 high)", "fixed.onnx", "float twin (fp32)"):
        assert part in done.stdout


def test_the_old_spelling_of_fp32_still_works_and_says_so(bundle: Path) -> None:
    done = odm_deploy("bench", bundle, "--precision", "f32", "--no-baseline", *QUICK)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == "--precision f32 is spelled fp32 now"


def test_a_float_model_is_timed_without_a_baseline(bundle: Path) -> None:
    done = odm_deploy("bench", bundle / "float.onnx", "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["baseline"] is None
    assert report["speedup"] is None
    assert "quantizes nothing" in report["baseline_note"]
    assert "quantizes nothing" in done.stderr


def test_the_gate_fails_and_holds(bundle: Path) -> None:
    slow = odm_deploy("bench", bundle, "--fail-slower", 1e-6, *QUICK)
    assert slow.returncode == 3
    assert "times as long as its float twin" in slow.stderr
    assert odm_deploy("bench", bundle, "--fail-slower", 1e6, *QUICK).returncode == 0
    unknown = odm_deploy("bench", bundle / "float.onnx", "--fail-slower", 2, *QUICK)
    assert unknown.returncode == 3
    assert "cannot be judged" in unknown.stderr


@pytest.mark.parametrize(
    ("slowest_ms", "code", "words"),
    # The float twin takes 100 ms, half of the model's runs 80 to as many as this.
    [(84, 0, ""), (110, 3, "cannot be judged"), (96, 0, "unsteady, also when timed again: half of the runs of m took")],
)
def test_the_gate_does_not_judge_what_is_too_unsteady_to_tell(
    monkeypatch: pytest.MonkeyPatch, slowest_ms: float, code: int, words: str
) -> None:
    mine, twins = (
        Measurement.of(name, [RunTimes(ms) for ms in times], 1, 1)
        for name, times in (("m", [80, 80, 80, slowest_ms, slowest_ms]), ("twin", [100] * 5))
    )
    report = BenchReport("openvino", "CPU", (1, 3, 8, 8), mine, twins)
    monkeypatch.setattr(benchmark, "benchmark", lambda *_, **__: report)
    done = CliRunner().invoke(cli, ["bench", "x", "--fail-slower", "1"], standalone_mode=False)
    assert done.exit_code == code or getattr(done.exception, "exit_code", None) == code
    assert words in f"{done.stderr} {done.exception}"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing.onnx"], 1, "no such file"),
        (["garbage.onnx"], 1, "not an ONNX model"),
        (["garbage.plan"], 1, "not a TensorRT engine"),
        (["."], 1, "holds no"),
        (["{bundle}/fixed.onnx", "--size", "8x8"], 1, "1x3x8x8"),
        (["{bundle}", "--size", "8x0"], 2, "8x0"),
        (["{bundle}", "--size", "8"], 2, "WIDTHxHEIGHT"),
        (["{bundle}", "--batch", "0"], 2, "batch of 0"),
        (["{bundle}", "--runtime", "abacus"], 2, "abacus"),
        (["{bundle}", "--threads", "0"], 2, "--threads 0"),
        (["{bundle}", "--runtime", "onnxruntime", "--precision", "bf16"], 2, "--precision bf16"),
        (["{bundle}", "--precision", "int4"], 2, "--precision int4"),
        (["{bundle}", "--fail-slower", "2", "--no-baseline"], 2, "--fail-slower"),
    ],
)
def test_wrong_input_is_one_line(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("garbage.onnx", "garbage.plan"):
        Path(name).write_text("x\n")
    done = odm_deploy("bench", *(argument.format(bundle=bundle) for argument in arguments))
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it now fails
import numpy as np
from odm_deploy.bench.benchmark import benchmark
from odm_deploy.bench.timing import Effort
from odm_deploy.engine import Engine
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.doctor import look_around
options = RuntimeOptions(threads=1)
with Engine.open(sys.argv[1], options=options) as engine:
    assert engine.upscale(np.zeros((8, 9, 3), np.uint8)).shape == (16, 18, 3)
report = benchmark(sys.argv[1], size=(8, 9), options=options, effort=Effort(iterations=2))
assert report.baseline is not None
assert look_around().packages["onnx"]
"""


def test_a_machine_without_torch_runs_and_times_bundles(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, str(bundle)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_an_image_larger_than_any_memory_is_one_line(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"cannot time .*: it takes images of 4611686018427387904x3x8x8"):
        benchmark._random_images((2**62, 3, 8, 8), Bundle.open(bundle / "model.onnx"))
