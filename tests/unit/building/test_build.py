"""What a build asks of its child process, without any builder: the request, and the command it equals."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from odm_deploy.building.build import build_engine
from odm_deploy.building.child import Channel, configure, make_logger
from odm_deploy.building.options import HARDWARE_LEVELS, BuildOptions, BuildRequest
from odm_deploy.building.trtexec import trtexec_command
from odm_deploy.errors import BuildError, UsageError
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.machine.builders import Builder
from tests.qdq_graphs import LEGAL

OPTIONS = BuildOptions(
    builder="tensorrt",
    shapes=InputShapes((1, 3, 16, 16), (1, 3, 64, 64), (4, 3, 128, 128)),
    tf32=False,
    workspace_mib=512,
    optimization_level=4,
    timing_cache=Path("kernel times.cache"),
)


def command(options, version, dims=(-1, 3, -1, -1)):
    line = trtexec_command(
        Path("a/model.onnx"), Path("b/engine.plan"), options, version=version, inputs={"x": list(dims)}
    )
    return shlex.split(line)


@pytest.mark.parametrize(
    "options",
    [OPTIONS, BuildOptions(builder="tensorrt_rtx", compute_capabilities=("SM86", "SM89")), BuildOptions("tensorrt")],
)
def test_request_survives_the_pipe(options):
    request = BuildRequest("model.onnx", "engine.plan", "build.log", options)
    assert BuildRequest.from_json(request.to_json()) == request


def test_trtexec_of_tensorrt_10_asks_for_strong_typing_and_11_does_not_know_it():
    words = command(OPTIONS, "10.13.2.6")
    assert words[:3] == ["trtexec", "--onnx=a/model.onnx", "--saveEngine=b/engine.plan"]
    assert {"--noTF32", "--builderOptimizationLevel=4", "--timingCacheFile=kernel times.cache"} <= set(words)
    assert "--stronglyTyped" in words
    assert "--stronglyTyped" not in command(OPTIONS, "11.4.0")


def test_trtexec_gives_no_shapes_to_a_static_input():
    assert not [word for word in command(OPTIONS, "11.4.0", dims=(1, 3, 64, 64)) if "Shapes" in word]


def test_rtx_command_names_its_targets():
    rtx = BuildOptions("tensorrt_rtx", compute_capabilities=("SM86",))
    words = command(rtx, "1.7.1")
    assert words[0] == "tensorrt_rtx"
    assert "--computeCapabilities=86" in words
    assert "--useGpu" in command(replace(rtx, compute_capabilities=("CURRENT",)), "1.7.1")


def test_compatible_plans_are_asked_for_in_trtexecs_words():
    words = command(replace(OPTIONS, version_compatible=True, hardware="ampere+"), "10.13.2.6")
    assert {"--versionCompatible", "--hardwareCompatibilityLevel=ampere+"} <= set(words)
    words = command(replace(OPTIONS, hardware="same-capability"), "11.1.0")
    assert "--hardwareCompatibilityLevel=sameComputeCapability" in words
    assert "--versionCompatible" not in words


def test_compatibility_is_the_business_of_tensorrt_alone():
    assert BuildOptions("tensorrt", version_compatible=True, hardware="ampere+").hardware == "ampere+"
    for choice in ({"version_compatible": True}, {"hardware": "ampere+"}):
        with pytest.raises(UsageError, match="every GPU it knows from Ampere on"):
            BuildOptions("tensorrt-rtx", **choice)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"builder": "openvino"}, "tensorrt, tensorrt_rtx"),
        ({"hardware": "turing"}, "same-capability"),
        ({"timeout_s": 0.0}, "time limit"),
        ({"timeout_s": float("nan")}, "time limit"),
        ({"workspace_mib": 0}, "--workspace 0"),
        ({"optimization_level": 6}, "between 0 and 5"),
    ],
)
def test_options_without_sense_are_refused_before_any_builder_is_looked_for(choice, words):
    with pytest.raises(UsageError, match=words):
        BuildOptions(**choice)


def test_real_builder_configurations_take_the_options():
    # The bindings of both builders share these names; those of TensorRT-RTX need no GPU.
    trt = pytest.importorskip("tensorrt_rtx")
    logger = make_logger(trt, io.StringIO())
    builder = trt.Builder(logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    options = replace(OPTIONS, version_compatible=True, hardware="ampere+", timing_cache=None)
    configure(trt, builder, config, network, options)
    assert config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.builder_optimization_level == 4
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 512 << 20
    assert set(HARDWARE_LEVELS.values()) == set(trt.HardwareCompatibilityLevel.__members__)


@pytest.fixture
def fake_tensorrt(tmp_path, monkeypatch):
    """Puts a `tensorrt` in front of the import path of the child that runs `program` when it is imported."""

    def install(program):
        (tmp_path / "modules").mkdir(exist_ok=True)
        (tmp_path / "modules" / "tensorrt.py").write_text(program)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
        monkeypatch.setattr("odm_deploy.building.build.choose_builder", lambda _: Builder("tensorrt", "10.13.2.6"))
        onnx.save(LEGAL["plain"](), tmp_path / "model.onnx")

    return install


def test_timing_caches_in_a_folder_are_kept_apart(fake_tensorrt, tmp_path, monkeypatch):
    seen = []
    fake_tensorrt("")
    monkeypatch.setattr(
        "odm_deploy.building.build.run_child",
        lambda request, _: seen.append(request.options.timing_cache) or {}["stop"],
    )
    for version in ("10.13.2.6", "11.1.0"):
        monkeypatch.setattr("odm_deploy.building.build.choose_builder", lambda _, it=version: Builder("tensorrt", it))
        for cache in (tmp_path, tmp_path / "one.cache"):
            with pytest.raises(KeyError):
                build_engine(tmp_path / "model.onnx", tmp_path / "engine.plan", BuildOptions(timing_cache=cache))
    first, one, second, same = seen
    assert one == same == tmp_path / "one.cache"
    assert first.parent == second.parent == tmp_path
    assert first != second
    assert first.name.startswith("tensorrt-10.13.2.6-")


def test_targets_are_spelled_freely_but_only_rtx_has_them():
    options = BuildOptions("tensorrt_rtx", compute_capabilities=("8.6", "89", "sm120", "current"))
    assert options.compute_capabilities == ("SM86", "SM89", "SM120", "CURRENT")
    with pytest.raises(UsageError, match="this machine only"):
        BuildOptions("tensorrt", compute_capabilities=("8.6",))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"crashed \(SIGSEGV\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "out of memory"),
        ("import os; os._exit(3)", r"without an answer \(exit code 3\)"),
        ("raise ImportError('libnvinfer.so.10')", r"libnvinfer\.so\.10"),
    ],
)
def test_the_end_of_a_builder_is_explained(fake_tensorrt, tmp_path, program, words):
    fake_tensorrt(program)
    with pytest.raises(BuildError, match=words):
        build_engine(tmp_path / "model.onnx", tmp_path / "engine.plan", BuildOptions("tensorrt"))
    assert not (tmp_path / "engine.plan").exists()


@pytest.mark.parametrize("text", ["", '{"onnx": "model.onnx", "pl'])
def test_a_builder_whose_parent_goes_before_all_is_said_ends(text):
    command = [sys.executable, "-m", "odm_deploy.building.child"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_channel_writes_json_lines_and_notices_a_parent_that_is_gone():
    stream = io.StringIO()
    Channel(stream).send("step", name="Timing", step=2)
    assert json.loads(stream.getvalue()) == {"event": "step", "name": "Timing", "step": 2}
    reading, writing = os.pipe()
    os.close(reading)
    # Unbuffered: nothing must be left to flush when the stream is closed.
    with io.TextIOWrapper(os.fdopen(writing, "wb", buffering=0), write_through=True) as stream:
        channel = Channel(stream)
        channel.send("step", name="Timing", step=3)
        assert not channel.open
