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

import pytest

from odm_deploy.building.build import _cause, _check_compatibility, _targets, _timing_cache_file, _trtexec
from odm_deploy.building.child import HARDWARE_LEVELS, BuildRequest, Channel, _configure, make_logger
from odm_deploy.errors import UsageError
from odm_deploy.machine.builders import Flavour

REQUEST = BuildRequest(
    module="tensorrt",
    onnx="model.onnx",
    plan="engine.plan",
    log="build.log",
    profile=((1, 3, 16, 16), (1, 3, 64, 64), (4, 3, 128, 128)),
    tf32=False,
    workspace_mib=512,
    optimization_level=4,
    timing_cache="kernel times.cache",
    compute_capabilities=(),
)


def command(request, version, dims=(-1, 3, -1, -1)):
    done = {"inputs": ["x"], "input_dims": [list(dims)], "version": version}
    return shlex.split(_trtexec(request, done, Path("a/model.onnx"), Path("b/engine.plan")))


def test_request_survives_the_pipe():
    assert BuildRequest.from_json(REQUEST.to_json()) == REQUEST


def test_trtexec_of_tensorrt_10_asks_for_strong_typing_and_11_does_not_know_it():
    words = command(REQUEST, "10.13.2.6")
    assert words[:3] == ["trtexec", "--onnx=a/model.onnx", "--saveEngine=b/engine.plan"]
    assert {"--noTF32", "--builderOptimizationLevel=4", "--timingCacheFile=kernel times.cache"} <= set(words)
    assert "--stronglyTyped" in words
    assert "--stronglyTyped" not in command(REQUEST, "11.4.0")


def test_trtexec_gives_no_shapes_to_a_static_input():
    assert not [word for word in command(REQUEST, "11.4.0", dims=(1, 3, 64, 64)) if "Shapes" in word]


def test_rtx_command_names_its_targets_and_no_timing_cache():
    rtx = replace(REQUEST, module="tensorrt_rtx", compute_capabilities=("SM86",))
    words = command(rtx, "1.7.1")
    assert words[0] == "tensorrt_rtx"
    assert "--computeCapabilities=86" in words
    assert not [word for word in words if "timingCache" in word]
    assert "--useGpu" in command(replace(rtx, compute_capabilities=("CURRENT",)), "1.7.1")


def test_compatible_plans_are_asked_for_in_trtexecs_words():
    words = command(replace(REQUEST, version_compatible=True, hardware="ampere+"), "10.13.2.6")
    assert {"--versionCompatible", "--hardwareCompatibilityLevel=ampere+"} <= set(words)
    words = command(replace(REQUEST, hardware="same-capability"), "11.1.0")
    assert "--hardwareCompatibilityLevel=sameComputeCapability" in words
    assert "--versionCompatible" not in words


def test_compatibility_is_the_business_of_tensorrt_alone():
    _check_compatibility(True, "ampere+", Flavour("tensorrt", "10.13"))
    _check_compatibility(False, "this", Flavour("tensorrt_rtx", "1.7.1"))
    for choice in ((True, "this"), (False, "ampere+")):
        with pytest.raises(UsageError, match="every GPU from Ampere on"):
            _check_compatibility(*choice, Flavour("tensorrt_rtx", "1.7.1"))
    with pytest.raises(UsageError, match="same-capability"):
        _check_compatibility(False, "turing", Flavour("tensorrt", "10.13"))


def test_real_builder_configurations_take_the_options():
    # The bindings of both flavours share these names; those of TensorRT-RTX need no GPU.
    trt = pytest.importorskip("tensorrt_rtx")
    logger = make_logger(trt, io.StringIO())
    builder = trt.Builder(logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    request = replace(REQUEST, version_compatible=True, hardware="ampere+", timing_cache=None)
    _configure(trt, builder, config, network, request)
    assert config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.builder_optimization_level == 4
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 512 << 20
    assert set(HARDWARE_LEVELS.values()) == set(trt.HardwareCompatibilityLevel.__members__)


def test_timing_caches_in_a_folder_are_kept_apart(tmp_path):
    tensorrt = Flavour("tensorrt", "10.13.2.6")
    assert _timing_cache_file(tmp_path / "one.cache", tensorrt) == tmp_path / "one.cache"
    first, second = (_timing_cache_file(tmp_path, flavour) for flavour in (tensorrt, Flavour("tensorrt", "11.1.0")))
    assert first.parent == second.parent == tmp_path
    assert first != second
    assert first.name.startswith("tensorrt-10.13.2.6-")


def test_targets_are_spelled_freely_but_only_rtx_has_them():
    rtx = Flavour("tensorrt_rtx", "1.7.1")
    assert _targets(["8.6", "89", "sm120", "current"], rtx) == ("SM86", "SM89", "SM120", "CURRENT")
    with pytest.raises(UsageError, match="this machine only"):
        _targets(["8.6"], Flavour("tensorrt", "10.13"))


def test_exit_codes_are_explained():
    assert _cause(-11) == "crashed (SIGSEGV)"
    assert "out of memory" in _cause(-9)
    assert "exit code 3" in _cause(3)


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


def test_child_without_its_module_says_so(tmp_path):
    request = replace(REQUEST, module="no_such_tensorrt", log=str(tmp_path / "build.log"))
    done = subprocess.run(
        [sys.executable, "-m", "odm_deploy.building.child"],
        input=request.to_json(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    event = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, event["event"]) == (1, "failed")
    assert "no_such_tensorrt" in event["why"]
