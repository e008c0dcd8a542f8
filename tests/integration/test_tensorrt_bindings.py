"""The real Python bindings of TensorRT 11 build an engine, with the C++ library of TensorRT for RTX behind them.

It is as near as a machine without a GPU comes to `tensorrt`: every call of the builder goes through the
bindings of the data-centre library into a real builder. Bindings of TensorRT 10 do not fit that library.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from odm_deploy.building.layer_table import parse_log
from odm_deploy.building.options import BuildOptions, BuildRequest
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.machine.builders import can_build, find_builder
from tests.qdq_graphs import CHANNELS, LEGAL, TRAPS
from tests.tensorrt_bindings import Bindings, find_wheels, skip_reason, unpack

RTX = find_builder("tensorrt_rtx")
WHEELS = [wheel for wheel in find_wheels() if not wheel.name.split("-")[1].startswith("10.")]

pytestmark = [
    pytest.mark.skipif(bool(skip_reason()), reason=skip_reason()),
    pytest.mark.skipif(not can_build(RTX), reason=RTX.problem or "TensorRT-RTX cannot build here"),
]


@pytest.fixture(scope="module", params=WHEELS, ids=lambda wheel: wheel.name.split("-")[1])
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    return unpack(request.param, tmp_path_factory.mktemp("bindings"))


@pytest.fixture
def request_of(tmp_path: Path) -> Any:
    def make(model: onnx.ModelProto, **options: Any) -> BuildRequest:
        onnx.save(model, tmp_path / "model.onnx")
        (tmp_path / "build.log").write_text("")
        chosen = BuildOptions(
            builder="tensorrt",
            shapes=InputShapes(*((1, CHANNELS, side, side) for side in (16, 32, 64))),
            tf32=False,
            workspace_mib=256,
            optimization_level=3,
            timing_cache=tmp_path / "timings",
        )
        return BuildRequest(
            onnx=str(tmp_path / "model.onnx"),
            plan=str(tmp_path / "engine.plan"),
            log=str(tmp_path / "build.log"),
            options=dataclasses.replace(chosen, **options),
        )

    return make


def build(bindings: Bindings, request: BuildRequest) -> tuple[list[dict[str, Any]], str]:
    done = bindings.run("-m", "odm_deploy.building.child", text=request.to_json())
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_an_engine_is_built_and_progress_reported(bindings: Bindings, request_of: Any, tmp_path: Path) -> None:
    events, errors = build(bindings, request_of(LEGAL["plain"]()))
    last = events[-1]
    assert last["event"] == "done", (last, errors)
    assert last["version"] == bindings.version
    assert list(last["inputs"]) == ["x"]
    assert (tmp_path / "engine.plan").stat().st_size > 1000
    assert {event["event"] for event in events} == {"phase", "step", "finished", "done"}
    # Without a GPU it cannot load what it built, and says so by leaving the inspection out.
    assert last["inspection"] is None
    layers = parse_log((tmp_path / "build.log").read_text().splitlines())
    assert [layer.precision for layer in layers if layer.is_compute] == ["int8"]


def test_the_timing_cache_is_kept_and_what_does_not_fit_replaced(
    bindings: Bindings, request_of: Any, tmp_path: Path
) -> None:
    cache = tmp_path / "timings"
    for content in (None, b"garbage"):
        if content is not None:
            cache.write_bytes(content)
        events, errors = build(bindings, request_of(LEGAL["plain"]()))
        assert events[-1]["event"] == "done", (events[-1], errors)
        assert len(cache.read_bytes()) > len(b"garbage")


@pytest.mark.parametrize("hardware", ["same-capability", "ampere+"])
def test_the_hardware_level_reaches_the_builder(bindings: Bindings, request_of: Any, hardware: str) -> None:
    events, errors = build(bindings, request_of(LEGAL["plain"](), hardware=hardware))
    assert events[-1]["event"] == "done", (events[-1], errors)
    assert any("setHardwareCompatibilityLevel" in warning for warning in events[-1]["warnings"])


def test_a_refused_graph_is_told_in_the_parsers_words(bindings: Bindings, request_of: Any) -> None:
    events, _ = build(bindings, request_of(TRAPS["zero point 3"].build()))
    assert events[-1]["event"] == "failed"
    assert "a_q [QuantizeLinear]" in events[-1]["why"]
