"""Which durations are measured again, beside what, how often, and what counts then. No clock is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from odm_deploy.bench.steadiness import ATTEMPTS, Timing, time_steadily
from odm_deploy.bench.timing import Effort
from odm_deploy.runtimes.base import RunTimes
from odm_deploy.runtimes.tensor_info import Array

STEADY = [100.0, 101.0, 99.0, 100.5]
DISTURBED = [192.0, 378.0, 200.0, 370.0]
"""Of the spread of a row that once named the wrong winner."""


class Scripted:
    """A model whose runs take what a script says, attempt by attempt."""

    def __init__(self, *attempts: Sequence[float]) -> None:
        self.attempts = attempts

    def timed_run(self, feeds: Mapping[str, Array]) -> RunTimes:
        raise AssertionError(f"nobody runs it on {feeds}")


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[list[Scripted]]:
    """Who is timed in each attempt; the loop itself is tested elsewhere."""
    diary: list[list[Scripted]] = []

    def time_runs(runtimes: Sequence[Scripted], feeds: object, effort: Effort, *_: object) -> list[list[RunTimes]]:
        del feeds
        assert effort.seconds == pytest.approx(6.0 * len(runtimes) / 3)
        diary.append(list(runtimes))
        return [[RunTimes(ms) for ms in model.attempts[len(diary) - 1]] for model in runtimes]

    monkeypatch.setattr("odm_deploy.bench.steadiness.time_runs", time_runs)
    return diary


def ms(runs: Sequence[RunTimes]) -> list[float]:
    return [run.latency_ms for run in runs]


def test_only_what_ran_unsteadily_is_timed_again_beside_its_base(
    attempts: list[list[Scripted]],
) -> None:
    later = [110.0] * 4
    base, calm, disturbed = Scripted(STEADY, later), Scripted(STEADY), Scripted(DISTURBED, [50.0] * 4)
    said: list[str] = []
    found = time_steadily([base, calm, disturbed], {}, Effort(seconds=6.0), say=said.append)
    assert attempts == [[base, calm, disturbed], [base, disturbed]]
    assert all(timing.steady for timing in found)
    # A ratio is of one time: the base's runs of the second attempt belong to what was timed in it.
    assert [ms(timing.base) for timing in found] == [STEADY, STEADY, later]
    assert ms(found[2].runs) == [50.0] * 4
    assert said == ["1 of 3 models ran unsteadily and are timed again"]


def test_what_stays_unsteady_is_said_to_be_and_its_steadiest_runs_are_kept(attempts: list[list[Scripted]]) -> None:
    better = [192.0, 250.0, 200.0, 240.0]
    base, calm = Scripted(*[STEADY] * ATTEMPTS), Scripted(*[STEADY] * ATTEMPTS)
    disturbed = Scripted(DISTURBED, better, DISTURBED)
    found = time_steadily([base, calm, disturbed], {}, Effort(seconds=6.0))
    assert len(attempts) == ATTEMPTS
    assert [timing.steady for timing in found] == [True, True, False]
    assert ms(found[2].runs) == better


def test_beside_an_unsteady_base_nothing_is_steady_and_all_are_timed_again(attempts: list[list[Scripted]]) -> None:
    calm = [Scripted(STEADY, STEADY), Scripted(STEADY, STEADY)]
    base = Scripted(DISTURBED, STEADY)
    found = time_steadily([*calm, base], {}, Effort(seconds=6.0), base=2)
    assert attempts == [[*calm, base]] * 2
    assert all(timing.steady for timing in found)


def test_on_a_gpu_it_is_compute_that_has_to_be_steady() -> None:
    runs = [RunTimes(latency, compute_ms=compute) for latency, compute in zip(DISTURBED, STEADY, strict=True)]
    assert Timing(runs, runs).steady
    assert not Timing([RunTimes(latency) for latency in DISTURBED], runs).steady


def test_a_few_slow_runs_do_not_make_a_model_unsteady() -> None:
    runs = [RunTimes(ms) for ms in [100.0] * 9 + [400.0, 500.0]]
    assert Timing(runs, runs).steady
