"""The real TensorRT-RTX builder, which needs no GPU: what it does to legal and to trap graphs, and how builds fail."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from odm_deploy import quantize
from odm_deploy.building.build import build_engine
from odm_deploy.building.bundle_engine import build_bundle_engine, describe_engine, say_warnings
from odm_deploy.building.coverage import coverage
from odm_deploy.building.options import BuildOptions
from odm_deploy.errors import BuildError, InputError, UsageError
from odm_deploy.graphs.input_shapes import InputShapes, parse_shapes
from odm_deploy.lowering.lint import lint
from odm_deploy.lowering.lower import lower
from odm_deploy.lowering.metadata import mark_exact
from odm_deploy.machine.builders import can_build, find_builder
from odm_deploy.quantization.layers import ChannelOffsets, FrozenLayer
from odm_deploy.quantization.model import freeze
from tests.factories import body_only, quantized, tiny_network
from tests.qdq_graphs import CHANNELS, LEGAL, TRAPS, Builder

RTX = find_builder("tensorrt_rtx")
SHAPES = InputShapes((1, CHANNELS, 16, 16), (1, CHANNELS, 64, 48), (2, CHANNELS, 128, 128))

pytestmark = pytest.mark.skipif(not can_build(RTX), reason=RTX.problem or "TensorRT-RTX cannot build here")


@pytest.fixture
def build(tmp_path):
    """Build a model with TensorRT-RTX; returns the report."""

    def run(model, **options):
        onnx.save(model, tmp_path / "model.onnx")
        calls = {name: options.pop(name) for name in ("on_progress", "log_path") if name in options}
        chosen = BuildOptions(**{"builder": RTX.name, "shapes": SHAPES, **options})
        return build_engine(tmp_path / "model.onnx", tmp_path / "engine.plan", chosen, **calls)

    return run


@pytest.mark.parametrize("label", TRAPS)
def test_builder_does_to_trap_graphs_what_lint_says(build, label):
    trap = TRAPS[label]
    if trap.fate in ("refused", "crashed"):
        with pytest.raises(BuildError) as caught:
            build(trap.build())
        assert f"[{trap.rule}]" in caught.value.fix
        assert ("SIGSEGV" in caught.value.what) == (trap.fate == "crashed")
        return
    model = trap.build()
    covered = coverage(model, build(model).layers, SHAPES)
    layer = next(layer for layer in covered.layers if layer.name == "layer")
    assert layer.precision == {"float": "fp32"}.get(trap.fate, trap.fate)
    assert (f"[{trap.rule}]" in layer.reason) == (trap.fate != "int8")


@pytest.mark.parametrize("label", LEGAL)
def test_legal_graphs_run_as_int8_in_every_layer(build, label):
    model = LEGAL[label]()
    covered = coverage(model, build(model).layers, SHAPES)
    assert covered.int8_layers == covered.quantized_layers == len(covered.layers) == 1
    assert covered.fallbacks == ()


def test_parse_error_names_the_node_in_the_builders_words(build):
    with pytest.raises(BuildError) as caught:
        build(TRAPS["zero point 3"].build())
    assert "a_q [QuantizeLinear]" in caught.value.why
    assert "zero point" in caught.value.why
    assert "a_q" in caught.value.fix


class Folding(nn.Module):
    """Pools and enlarges again, as U-Nets do, or cuts the image into windows, as transformers do."""

    def __init__(self, *, windows: bool):
        super().__init__()
        self.windows = windows
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        if not self.windows:
            return self.last(x + nn.functional.interpolate(self.body(nn.functional.max_pool2d(x, 4)), scale_factor=4))
        height, width = x.shape[2:]
        cut = x.view(1, 4, height // 8, 8, width // 8, 8)
        return self.last(self.body((cut - cut.mean((3, 5), keepdim=True)).reshape(1, 4, height, width)))


@pytest.mark.parametrize(("windows", "fix"), [(False, "multiples of 4"), (True, "multiples of 8")])
def test_sizes_that_the_network_takes_are_told_where_it_does_not_take_these(build, windows, fix):
    model = lower(quantize(Folding(windows=windows), 8, [torch.full((1, 3, 48, 48), 90.0)]))
    with pytest.raises(BuildError) as caught:
        build(model, shapes=parse_shapes("1x3x270x480"))
    assert caught.value.fix == f"it runs on images whose sides are {fix}: --shapes 1x3x272x480"
    assert build(model, shapes=parse_shapes("1x3x272x480")).plan_bytes
    with pytest.raises(BuildError, match=r"--shapes 1x3x16x16:1x3x536x960:1x3x544x960$"):
        build(model, shapes=parse_shapes("1x3x14x16:1x3x533x960:1x3x543x960"))


def test_crash_leaves_no_plan_and_keeps_the_old_one(build, tmp_path):
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"the plan of yesterday")
    with pytest.raises(BuildError, match="SIGSEGV"):
        build(TRAPS["scale computed at run time"].build())
    assert plan.read_bytes() == b"the plan of yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine.plan", "model.onnx"]


def test_timeout_stops_the_build_soon(build, tmp_path):
    started = time.monotonic()
    with pytest.raises(BuildError, match=r"longer than 0\.01 s"):
        build(LEGAL["plain"](), timeout_s=0.01)
    assert time.monotonic() - started < 10
    assert not (tmp_path / "engine.plan").exists()


def test_report_says_what_was_built(build, tmp_path):
    log = tmp_path / "logs" / "build.log"
    report = build(LEGAL["plain"](), tf32=False, log_path=log, workspace_mib=256, timing_cache=tmp_path / "t.cache")
    assert report.plan == tmp_path / "engine.plan"
    assert report.plan_bytes == report.plan.stat().st_size > 1000
    assert report.builder == "tensorrt_rtx"
    assert report.version == RTX.version
    assert 0 < report.seconds < 60
    assert "Layers:" in log.read_text()
    assert any("timing cache" in warning for warning in report.warnings)
    words = report.trtexec_equivalent.split()
    assert words[:3] == ["tensorrt_rtx", "--onnx=model.onnx", "--saveEngine=engine.plan"]
    assert {"--minShapes=x:1x16x16x16", "--optShapes=x:1x16x64x48", "--maxShapes=x:2x16x128x128"} <= set(words)
    assert {"--noTF32", "--memPoolSize=workspace:256"} <= set(words)


def test_what_the_builder_warns_about_is_said_and_written_down(tmp_path):
    onnx.save(TRAPS["uint8 zero point 0"].build(), tmp_path / "model.onnx")
    said = []
    options = BuildOptions(builder=RTX.name, shapes=SHAPES)
    built = build_bundle_engine(tmp_path / "model.onnx", tmp_path / "engine.plan", options, said.append)
    assert built is not None
    assert any("Defaulting to INT8" in warning for warning in built.warnings)
    assert [line for line in said if "warns" in line] == [f"tensorrt_rtx warns: {each}" for each in built.warnings]
    assert describe_engine(built)["warnings"] == list(built.warnings)


def test_many_warnings_are_cut_short_on_the_terminal(build):
    said = []
    noisy = dataclasses.replace(build(LEGAL["plain"]()), warnings=tuple(f"number {index}" for index in range(60)))
    say_warnings(noisy, said.append)
    assert len(said) == 6
    assert "55 more warnings" in said[-1]
    assert len(describe_engine(noisy)["warnings"]) == 50


def test_exact_graphs_are_built_without_tf32_whatever_is_asked(build):
    model = LEGAL["plain"]()
    assert build(model, tf32=True).options.tf32
    metadata = {}
    mark_exact(metadata)
    onnx.helper.set_model_props(model, metadata)
    report = build(model, tf32=True)
    assert not report.options.tf32
    assert "--noTF32" in report.trtexec_equivalent


def test_progress_reports_nested_phases_with_their_steps(build):
    seen = []
    build(LEGAL["plain"](), on_progress=seen.append)
    assert seen[0].depth == 0
    assert max(progress.depth for progress in seen) >= 1
    assert all(0 <= progress.step <= progress.steps for progress in seen)
    assert len({progress.phase for progress in seen}) > 3


def test_exception_in_the_progress_callback_ends_the_build(build, tmp_path):
    def refuse(progress):
        raise RuntimeError(progress.phase)

    with pytest.raises(RuntimeError, match="Building engine"):
        build(LEGAL["plain"](), on_progress=refuse)
    assert not (tmp_path / "engine.plan").exists()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child process through /proc")
def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_interrupt_kills_the_builder(tmp_path):
    onnx.save(LEGAL["plain"](), tmp_path / "model.onnx")
    # The callback stalls the parent in the middle of a build.
    # What runs in the background of a shell ignores Ctrl-C, and so would its children.
    program = f"""
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from odm_deploy.building.build import build_engine
from odm_deploy.building.options import BuildOptions
from odm_deploy.graphs.input_shapes import InputShapes, parse_shapes
build_engine({str(tmp_path / "model.onnx")!r}, {str(tmp_path / "engine.plan")!r},
    BuildOptions(builder="tensorrt_rtx", shapes=InputShapes.static(1, 64, 64, 16)),
    on_progress=lambda progress: print(progress, time.sleep(60)))
"""
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        deadline = time.monotonic() + 30
        while not children.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        builder = int(children.read_text().split()[0])
        parent.send_signal(signal.SIGINT)
        try:
            parent.wait(timeout=20)
        finally:
            parent.kill()
    # Interrupted between the start of the builder and the request, the parent leaves it to end by itself.
    deadline = time.monotonic() + 20
    while (alive := _is_alive(builder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive
    assert not (tmp_path / "engine.plan").exists()


def test_compute_capabilities_are_chosen_and_checked(build):
    assert (
        "--computeCapabilities=86,89"
        in build(LEGAL["plain"](), compute_capabilities=["8.6", "sm89"]).trtexec_equivalent
    )
    with pytest.raises(BuildError, match=r"cannot build for SM99.*SM86"):
        build(LEGAL["plain"](), compute_capabilities=["9.9"])


def test_turing_runs_nothing_as_int8(build):
    model = LEGAL["plain"]()
    covered = coverage(model, build(model, compute_capabilities=["7.5"]).layers, SHAPES)
    assert (covered.quantized_layers, covered.int8_layers) == (1, 0)
    assert "no known trap" in covered.fallbacks[0].reason


def test_input_that_is_no_image_batch_is_refused(build):
    b = Builder()
    model = b.model(b.conv(b.qdq("x", "a"), b.weights()))
    model.graph.input[0].type.tensor_type.shape.dim.pop()
    with pytest.raises(BuildError):
        build(model)


def test_hostile_input_is_refused_before_any_builder_starts(tmp_path):
    cases = {"empty.onnx": b"", "text.onnx": b"hello"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    for name in (*cases, "missing.onnx"):
        with pytest.raises(InputError):
            build_engine(tmp_path / name, tmp_path / "engine.plan", BuildOptions(builder=RTX.name, shapes=SHAPES))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(cases)


def test_a_json_module_in_the_working_directory_is_not_run(build, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    assert build(LEGAL["plain"]()).plan_bytes > 0


def test_no_time_is_a_usage_error(build):
    with pytest.raises(UsageError):
        build(LEGAL["plain"](), timeout_s=0)


def test_unnamed_nodes_are_matched_with_engine_layers(build):
    model = LEGAL["plain"]()
    for node in model.graph.node:
        node.name = ""
    covered = coverage(model, build(model).layers, SHAPES)
    assert [(layer.name, layer.precision) for layer in covered.layers] == [("node_of_layer", "int8")]
    assert lint(model) == []


def test_plan_path_may_be_relative(build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(LEGAL["plain"](), "here.onnx")
    report = build_engine("here.onnx", "deep/er.plan", BuildOptions(builder=RTX.name, shapes=SHAPES))
    assert Path("deep/er.plan").stat().st_size == report.plan_bytes


@pytest.mark.parametrize("bits", [4, 8])
def test_channel_offsets_fold_into_the_quantizer(build, bits):
    """x* = (x + shift) * gain in front of every quantizer costs no layer its int8."""
    model = quantized(tiny_network(), body_only(bits, "asymmetric", "per_channel"))
    random = torch.Generator().manual_seed(1)
    layers = {
        name: FrozenLayer(
            layer.weight_codes,
            layer.grid,
            layer.bias,
            ChannelOffsets(
                shift=torch.randn(layer.codes.shape[1], generator=random),
                gain=1 + 0.1 * torch.randn(layer.codes.shape[1], generator=random),
            ),
        )
        for name, layer in model.layers.items()
    }
    offset = lower(freeze(tiny_network(), layers))
    shapes = InputShapes((1, 3, 16, 16), (1, 3, 64, 48), (2, 3, 128, 128))
    assert [finding for finding in lint(offset) if set(finding.layers) & set(layers)] == []
    covered = coverage(offset, build(offset, shapes=shapes).layers, shapes)
    assert {layer.name for layer in covered.layers if layer.precision == "int8"} == set(layers)
