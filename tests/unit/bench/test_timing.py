"""The timed loop: who runs when, how often, and what is counted. No assertion depends on the clock."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, ClassVar, Self

import numpy as np
import pytest

from odm_deploy.bench.timing import Effort, Percentiles, time_runs
from odm_deploy.bundle import Bundle, ModelKind
from odm_deploy.errors import InputError, UsageError
from odm_deploy.runtimes.base import Runtime, RunTimes
from odm_deploy.runtimes.onnx.onnx_runtime import OnnxRuntime
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensor_info import Array, TensorInfo
from tests.sr_graphs import random_images, sr_model

FEEDS = {"x": np.zeros(1, np.float32)}


class Diary(Runtime):
    """A runtime that computes nothing and writes down when it was called."""

    name: ClassVar[str] = "diary"
    model_kind: ClassVar[ModelKind] = "onnx"

    def __init__(self, label: str, diary: list[str]) -> None:
        super().__init__()
        self.label, self.diary = label, diary
        self.inputs = (TensorInfo("x", np.dtype(np.float32), (1,)),)
        self.outputs = self.inputs
        self.runs = 0

    @classmethod
    def _load_bytes(cls, model: bytes, options: RuntimeOptions, label: str) -> Self:
        return cls(label, [])

    @classmethod
    def _open_bundle(cls, bundle: Bundle, options: RuntimeOptions) -> Self:
        return cls(str(bundle), [])

    def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return dict(feeds)

    def _execute_timed(self, feeds: Mapping[str, Array]) -> RunTimes:
        self.diary.append(self.label)
        self.runs += 1
        return RunTimes(latency_ms=self.runs)

    def _release(self) -> None:
        self.diary.append(f"{self.label} closed")

    def describe(self) -> dict[str, Any]:
        return {}


def measured(diary: list[str], labels: Iterable[str]) -> list[tuple[str, int]]:
    """The blocks after the warm-up, which runs each model in turn until it has settled."""
    blocks = [(label, len(list(calls))) for label, calls in groupby(diary)]
    return blocks[len(list(labels)) :]


def test_blocks_alternate_and_their_first_run_is_not_counted() -> None:
    diary: list[str] = []
    samples = time_runs([Diary("a", diary), Diary("b", diary)], FEEDS, Effort(iterations=23))
    assert [len(runs) for runs in samples] == [23, 23]
    # Four rounds of 6, 6, 6, 5 counted runs, forwards and backwards; neighbours of one model melt together. The
    # warm-up ends with b, and a begins.
    assert measured(diary, "ab") == [("a", 7), ("b", 14), ("a", 14), ("b", 13), ("a", 6)]


def test_samples_are_every_counted_run_in_order() -> None:
    diary: list[str] = []
    runtime = Diary("a", diary)
    (runs,) = time_runs([runtime], FEEDS, Effort(iterations=12))
    # Alone, no run between the blocks is wasted: the counted runs are the last twelve.
    assert [run.latency_ms for run in runs] == list(range(runtime.runs - 11, runtime.runs + 1))


@pytest.mark.parametrize("iterations", [1, 2, 5, 10, 77])
def test_the_number_of_iterations_is_kept(iterations: int) -> None:
    seen: list[int] = []

    def track(rounds: Iterable[int], total: int) -> Iterable[int]:
        for index in rounds:
            seen.append(total)
            yield index

    runs = time_runs([Diary("a", [])], FEEDS, Effort(iterations=iterations), track)
    assert len(runs[0]) == iterations
    assert seen == [len(seen)] * len(seen)


def test_models_too_slow_for_the_time_asked_for_are_run_three_times_and_said_to_be(monkeypatch) -> None:
    monkeypatch.setattr("odm_deploy.bench.timing._SLOW_S", 0.05)

    class Slow(Diary):
        def _execute_timed(self, feeds: Mapping[str, Array]) -> RunTimes:
            time.sleep(0.1)
            return super()._execute_timed(feeds)

    diary, said = [], []
    samples = time_runs([Slow("a", diary), Slow("b", diary)], FEEDS, Effort(seconds=0.01), say=said.append)
    assert [len(runs) for runs in samples] == [3, 3]
    # One run before they count, and none between the rounds.
    assert len(diary) == 8
    (line,) = said
    assert re.fullmatch(r"a run takes 0\.\d and 0\.\d s; 3 of each, \d s: a smaller size is faster", line)


def test_time_buys_three_to_two_thousand_runs() -> None:
    assert len(time_runs([Diary("a", [])], FEEDS, Effort(seconds=1e-6))[0]) == 3
    assert len(time_runs([Diary("a", [])], FEEDS, Effort(seconds=3600))[0]) == 2000


def test_the_fewest_runs_are_spread_over_the_fewest_rounds() -> None:
    diary: list[str] = []
    effort = Effort(seconds=1e-6, fewest=8, fewest_rounds=4)
    samples = time_runs([Diary("a", diary), Diary("b", diary)], FEEDS, effort)
    assert [len(runs) for runs in samples] == [8, 8]
    assert measured(diary, "ab") == [("a", 3), ("b", 6), ("a", 6), ("b", 6), ("a", 3)]
    # Who says how many, gets as many.
    assert len(time_runs([Diary("a", [])], FEEDS, Effort(2, fewest=8, fewest_rounds=4))[0]) == 2


def test_a_real_runtime_is_timed() -> None:
    with OnnxRuntime.open_bytes(sr_model().SerializeToString(), RuntimeOptions(threads=1)) as runtime:
        (runs,) = time_runs([runtime], {"image": random_images()}, Effort(iterations=3))
        assert all(run.latency_ms > 0 and run.compute_ms is None for run in runs)
        with pytest.raises(InputError, match="not the inputs"):
            time_runs([runtime], FEEDS, Effort(iterations=3))


def test_percentiles_are_linear_between_samples() -> None:
    times = Percentiles.of([float(value) for value in range(101)])
    assert times == Percentiles(25.0, 50.0, 75.0, 90.0, 99.0, 50.0)
    assert times.spread == 1.0
    assert Percentiles.of([2.0]) == Percentiles(*[2.0] * 6)


@pytest.mark.parametrize(
    ("effort", "option"),
    [({"iterations": 0}, "--iterations 0"), ({"seconds": 0}, "--seconds 0"), ({"seconds": float("inf")}, "inf")],
)
def test_no_effort_is_refused(effort: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError, match=option):
        Effort(**effort)
