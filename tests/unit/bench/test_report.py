"""Numbers in a report follow from the runs alone."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from odm_deploy.bench.gpu_watch import GpuState
from odm_deploy.bench.limits import LayerLimit
from odm_deploy.bench.report import BenchReport, LayerTime, Measurement
from odm_deploy.building.layer_table import LayerRecord
from odm_deploy.runtimes.base import RunTimes


def cpu(*latencies_ms: float, model: str = "m") -> Measurement:
    return Measurement.of(model, [RunTimes(value) for value in latencies_ms], 2, 3_000_000)


def gpu(compute_ms: float, copies_ms: float) -> Measurement:
    times = RunTimes(2 * copies_ms + compute_ms, copies_ms, compute_ms, copies_ms)
    return Measurement.of("m", [times] * 3, 1, 1_000_000)


def report(measurement: Measurement, baseline: Measurement | None, note: str = "") -> BenchReport:
    return BenchReport("openvino", "CPU", (2, 3, 10, 20), measurement, baseline, note, {"threads": 2})


def test_throughput_follows_from_the_mean_latency() -> None:
    measurement = cpu(10.0, 30.0)
    assert measurement.iterations == 2
    assert measurement.images_per_s == pytest.approx(2 / 0.020)
    assert measurement.mpix_per_s == pytest.approx(3 / 0.020)


def test_speedup_compares_medians() -> None:
    assert report(cpu(10, 10, 100), cpu(30, 30, 30)).speedup == pytest.approx(3.0)
    assert report(cpu(10), None, "why").speedup is None


def test_durations_that_lie_far_apart_are_called_unsteady_in_json_table_and_a_line() -> None:
    unsteady = report(cpu(192, 200, 378), cpu(400, 400, 400, model="float twin (fp32)"))
    document = unsteady.to_dict()
    assert (document["steady"], document["baseline"]["steady"]) == (False, True)
    text = io.StringIO()
    Console(file=text, width=140).print(unsteady.to_table())
    shown = " ".join(text.getvalue().split())
    assert "2.00 times as fast as in float, unsteady" in shown
    assert "m (unsteady)" in shown
    assert "float twin (fp32) (unsteady)" not in shown
    line = unsteady.unsteady_line()
    assert line.startswith("unsteady, also when timed again: half of the runs of m took 196.0 to 289.0 ms;")
    assert unsteady.slowdown_range == pytest.approx((196 / 400, 289 / 400))
    steady = report(cpu(100, 101, 102), cpu(400, 400, 400))
    assert steady.steady
    assert steady.unsteady_line() == ""


def test_what_the_fastest_runs_say_stands_behind_an_unsteady_speedup() -> None:
    unsteady = report(cpu(192, 200, 378), cpu(400, 400, 400))
    assert unsteady.to_dict()["speedup_at_best"] is None
    known = replace(unsteady, speedup_at_best=1.351)
    assert known.to_dict()["speedup_at_best"] == 1.351
    # A gate in between cannot be judged, also where each of the two ran steadily at a speed of its own.
    apart = replace(report(cpu(200, 200, 201), cpu(400, 400, 401)), speedup_at_best=1.0)
    assert not apart.steady
    assert apart.slowdown_range == pytest.approx((200 / 400.5, 1.0))
    text = io.StringIO()
    Console(file=text, width=140).print(known.to_table())
    assert "2.00 times as fast as in float, unsteady, 1.35 times by the fastest runs" in " ".join(
        text.getvalue().split()
    )


def test_on_a_gpu_the_speedup_leaves_copies_out() -> None:
    assert report(gpu(1.0, 5.0), gpu(2.0, 5.0)).speedup == pytest.approx(2.0)


def test_runs_without_a_gap_have_a_speedup_of_their_own() -> None:
    mine, twin = replace(gpu(1.0, 5.0), back_to_back_ms=0.5), replace(gpu(2.0, 5.0), back_to_back_ms=1.5)
    both = report(mine, twin)
    assert both.speedup == pytest.approx(2.0)
    assert both.back_to_back_speedup == both.to_dict()["back_to_back_speedup"] == pytest.approx(3.0)
    assert both.to_dict()["back_to_back_ms"] == 0.5
    text = io.StringIO()
    Console(file=text, width=140).print(both.to_table())
    assert "2.00 times as fast as in float (3.00 back to back)" in " ".join(text.getvalue().split())
    assert "compute, back to back" in text.getvalue()
    assert report(mine, gpu(2.0, 5.0)).back_to_back_speedup is None


def test_json_has_the_documented_keys() -> None:
    document = report(cpu(10), cpu(20, model="float twin (fp32)")).to_dict()
    assert document["runtime"] == "openvino"
    assert document["device"] == "CPU"
    assert document["shape"] == [2, 3, 10, 20]
    assert document["latency_ms"] == dict.fromkeys(("p25", "p50", "p75", "p90", "p99", "mean"), 10.0)
    assert document["speedup"] == pytest.approx(2.0)
    assert document["baseline"]["latency_ms"]["p50"] == 20.0
    assert {"images_per_s", "mpix_per_s"} <= document.keys() & document["baseline"].keys()
    assert "compute_ms" not in document
    assert gpu(1.0, 5.0).to_dict()["compute_ms"]["p50"] == 1.0
    assert report(cpu(10), None, "it quantizes nothing").to_dict()["baseline_note"] == "it quantizes nothing"


def test_the_table_shows_both_models_and_the_parts_of_a_gpu_run() -> None:
    def rendered(item: BenchReport) -> str:
        text = io.StringIO()
        Console(file=text, width=140).print(item.to_table())
        return text.getvalue()

    on_cpu = rendered(report(cpu(1234.5), cpu(2469.0, model="float twin (fp32)")))
    assert "2.00 times as fast" in on_cpu
    assert "1234" in on_cpu
    assert "float twin (fp32)" in on_cpu
    assert "H2D" not in on_cpu
    assert "GPU compute" in rendered(report(gpu(1.0, 5.0), None))


def test_the_gpus_line_says_what_throttled_it() -> None:
    state = GpuState((1400, 1980), 66, 200.4, 120, ("software power cap",))
    line = replace(report(gpu(1, 1), None), gpu=state).gpu_line()
    assert line == "120 MiB of GPU memory, SM clock 1400 to 1980 MHz, 66 C, 200 W, THROTTLED by software power cap"
    assert replace(report(gpu(1, 1), None), gpu=GpuState(None, None, None, None, ())).gpu_line() == "not throttled"
    assert report(cpu(1), None).gpu_line() == ""
    unknown = replace(report(gpu(1, 1), None), gpu_note="the state of the GPU is unknown")
    assert unknown.gpu_line() == unknown.to_dict()["gpu_note"] == "the state of the GPU is unknown"


def test_only_a_model_that_is_not_much_faster_is_explained() -> None:
    layers = tuple(LayerLimit(f"conv{index}", "fp32", 0.1, "unquantized") for index in range(7))
    slow = replace(report(cpu(10), cpu(12)), limits=("a limit",), slow_layers=layers)
    lines = slow.explanation()
    assert lines[:2] == ("What keeps it from being faster:", "  - a limit")
    assert lines[-1] == "  - and 2 more layers (--json has all)"
    assert replace(slow, baseline=cpu(16)).explanation() == ()
    assert report(cpu(10), None).explanation() == ()
    assert report(cpu(10), cpu(10)).explanation() == ("Nothing known keeps it from being faster.",)


def test_layers_of_an_engine_are_sorted_by_their_time() -> None:
    known = [LayerRecord("conv", "correlation", "int8", ())]
    slow, fast = LayerTime.of({"scale": 0.5, "conv": 1.5}, known)
    assert (slow.name, slow.precision, slow.ms, slow.share) == ("conv", "int8", 1.5, 0.75)
    assert (fast.name, fast.precision, fast.ms, fast.share) == ("scale", "unknown", 0.5, 0.25)
    assert LayerTime.of({}, known) == ()
