"""Every name of TensorRT that the code uses exists in the real Python modules, and takes what it is given."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.tensorrt_api import RTX_ONLY, ApiCheck, check
from tests.tensorrt_bindings import find_wheels, skip_reason, unpack


def test_tensorrt_rtx_has_every_name():
    pytest.importorskip("tensorrt_rtx")
    found = check("tensorrt_rtx")
    assert found.problems == set()
    assert len(found.used) > 70
    assert found.used >= RTX_ONLY


def test_the_check_finds_what_does_not_fit():
    trt = pytest.importorskip("tensorrt_rtx")
    source = """
class Log(trt.ILogger):
    def log(self, severity): ...
    def shout(self, message): ...

def build(log):
    builder = trt.Builder(log, log)
    network = builder.create_network(explicit=True)
    network.get_input(0).name.upper()
    trt.OnnxParser(network, log).parse_from_bytes(b"")
    configure(builder.create_builder_config())

def configure(config):
    config.set_flag(trt.BuilderFlag.FP16)
    config.num_optimization_profiles = 3
    config.set_flag()
"""
    found = ApiCheck(trt)
    for _ in range(2):
        found.read(ast.parse(source))
    assert sorted(problem.split(":")[0] for problem in found.problems) == [
        "Builder is called with 2 and []",
        "Builder.create_network is called with 0 and ['explicit']",
        "IBuilderConfig.num_optimization_profiles cannot be set",
        "IBuilderConfig.set_flag is called with 0 and []",
        "ILogger calls no shout",
        "ILogger.log is called with ['severity",
        "there is no BuilderFlag.FP16",
        "there is no OnnxParser.parse_from_bytes",
    ]


@pytest.mark.skipif(bool(skip_reason()), reason=skip_reason())
@pytest.mark.parametrize("wheel", find_wheels(), ids=lambda wheel: wheel.name.split("-")[1])
def test_tensorrt_has_every_name_but_those_of_rtx(wheel: Path, tmp_path: Path):
    program = """
import json
from tests.tensorrt_api import check
found = check("tensorrt")
print(json.dumps({"problems": sorted(found.problems), "used": sorted(found.used)}))
"""
    bindings = unpack(wheel, tmp_path)
    done = bindings.run("-c", program)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["problems"]) == {f"there is no {name}" for name in RTX_ONLY}
    assert {"Builder.create_network", "IExecutionContext.execute_async_v3"} <= set(found["used"])


@pytest.mark.skipif(bool(skip_reason()), reason=skip_reason())
@pytest.mark.parametrize("wheel", find_wheels(), ids=lambda wheel: wheel.name.split("-")[1])
def test_logger_and_monitor_are_what_tensorrt_takes(wheel: Path, tmp_path: Path):
    program = """
import io, sys, tensorrt as trt
from odm_deploy.building.child import HARDWARE_LEVELS, Channel, make_logger, make_monitor
text, events = io.StringIO(), io.StringIO()
logger, monitor = make_logger(trt, text), make_monitor(trt, Channel(events))
logger.log(trt.ILogger.Severity.ERROR, "went wrong")
monitor.phase_start("build", None, 2)
assert monitor.step_complete("build", 1)
assert {*HARDWARE_LEVELS.values()} == {*trt.HardwareCompatibilityLevel.__members__}
print(text.getvalue(), logger.errors, events.getvalue())
"""
    done = unpack(wheel, tmp_path).run("-c", program)
    assert done.returncode == 0, done.stderr
    assert "[ERROR] went wrong\n ['went wrong']" in done.stdout
    assert '{"event": "step", "name": "build", "step": 1}' in done.stdout
