"""Which durations are measured again, beside what, how often, and what counts then. No clock is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from odm_deploy.bench.steadiness import ATTEMPTS, ENOUGH_ROUNDS, ENOUGH_RUNS, Timing, time_steadily
from odm_deploy.bench.timing import Effort
from odm_deploy.runtimes.base import RunTimes
from odm_deploy.runtimes.tensor_info import Array

STEADY = [100.0, 101.0, 99.0, 100.5]
DISTURBED = [192.0, 378.0, 200.0, 370.0]
"""Of the spread of a row that once named the wrong winner."""


TWO_SPEEDS = [50.4, 49.9, 95.1, 96.0, 94.2, 97.3, 50.8, 51.0, 93.9, 50.2, 95.5, 50.1]
"""Of a machine that is slow half of the time."""
TWO_SPEEDS_BASE = [381.0, 384.2, 200.5, 202.3, 199.8, 379.5, 388.0, 201.1, 380.7, 203.0, 383.9, 200.9]
DRIFTING = [100.0 * 1.06**step for step in range(12)]


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
    later = [105.0] * 4
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


def of(*milliseconds: float) -> list[RunTimes]:
    return [RunTimes(value) for value in milliseconds]


def test_of_two_speeds_the_fastest_runs_tell_the_ratio() -> None:
    timing = Timing(of(*TWO_SPEEDS), of(*TWO_SPEEDS_BASE))
    assert not timing.steady
    best = timing.at_best
    assert best is not None
    # The medians of the three fastest of each.
    assert (best.ms, best.base_ms) == (50.1, 200.5)
    assert best.speedup == pytest.approx(4.0, rel=0.01)


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param(DRIFTING, id="drift"),
        pytest.param(DRIFTING[::-1], id="drift the other way"),
        pytest.param([30.0, *TWO_SPEEDS[2:6] * 3], id="a lucky run"),
        pytest.param([30.0, 30.1, *TWO_SPEEDS[2:6] * 3], id="two lucky runs"),
        pytest.param([30.0, 30.1, 30.2, *TWO_SPEEDS[2:6] * 30], id="three lucky runs of many"),
        pytest.param(TWO_SPEEDS[: ENOUGH_RUNS - 1], id="few runs"),
    ],
)
def test_fastest_runs_that_are_few_or_do_not_agree_tell_nothing(runs: list[float]) -> None:
    steady = of(*[200.0] * len(runs))
    assert Timing(of(*runs), steady).at_best is None
    assert Timing(steady, of(*runs)).at_best is None


def test_the_fastest_runs_are_sought_in_all_attempts(attempts: list[list[Scripted]]) -> None:
    base = Scripted([200.0, 380.0, 370.0], [382.0, 201.0, 360.0], [375.0, 381.0, 202.0])
    other = Scripted([100.0] * 3, [100.0] * 3, [100.0] * 3)
    model = Scripted([96.0, 94.0, 51.0], [50.0, 95.0, 93.0], [97.0, 92.0, 50.5])
    found = time_steadily([base, other, model], {}, Effort(seconds=6.0))[2]
    assert len(attempts) == ATTEMPTS
    # What counts as its runs is one attempt, and no fast one counts twice.
    assert len(found.runs) == len(found.base) == 3
    assert found.at_best is not None
    assert (found.at_best.ms, found.at_best.base_ms) == (50.5, 201.0)


def test_on_a_gpu_it_is_compute_that_is_fastest() -> None:
    runs = [RunTimes(2 * compute, compute_ms=compute) for compute in TWO_SPEEDS]
    best = Timing(runs, runs).at_best
    assert best is not None
    assert (best.ms, best.speedup) == (50.1, 1.0)


def test_only_what_is_timed_again_has_enough_runs_for_several_fast_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    efforts: list[Effort] = []

    def time_runs(runtimes: Sequence[Scripted], _feeds: object, effort: Effort, *_: object) -> list[list[RunTimes]]:
        efforts.append(effort)
        return [of(*model.attempts[0]) for model in runtimes]

    monkeypatch.setattr("odm_deploy.bench.steadiness.time_runs", time_runs)
    time_steadily([Scripted(STEADY), Scripted(DISTURBED)], {}, Effort(seconds=6.0))
    again = Effort(seconds=6.0, fewest=ENOUGH_RUNS, fewest_rounds=ENOUGH_ROUNDS)
    assert efforts == [Effort(seconds=6.0), again, again]


def test_models_that_met_different_speeds_of_the_machine_are_unsteady():
    fast, slow = ([RunTimes(ms + ms / 100 * jitter) for jitter in range(6)] for ms in (50.0, 100.0))
    assert Timing(slow, slow).steady
    met = Timing(fast, slow, all_runs=[*fast, *slow], all_base=[*slow, *fast])
    assert met.speedup == 2.0
    assert met.spread < 0.1
    assert not met.steady
    assert met.at_best is not None
    assert met.at_best.speedup == pytest.approx(1.0, abs=0.02)


def test_where_most_are_unsteady_all_are_timed_again_and_share_the_fastest_runs_of_their_base(
    attempts: list[list[Scripted]],
) -> None:
    """A model that ran at the machine's faster speed beside a base at its slower one seemed twice as fast as it is."""
    base = Scripted([400.0] * 8, [200.0] * 8)
    lucky = Scripted([50.0] * 8, [51.0] * 8)
    disturbed = [Scripted(DISTURBED * 2, STEADY * 2) for _ in range(3)]
    said: list[str] = []
    models = [*disturbed, lucky, base]
    found = time_steadily(models, {}, Effort(seconds=10.0), base=4, say=said.append)[3]
    assert attempts == [models] * 2
    assert said == ["3 of 5 models ran unsteadily, so all are timed again"]
    assert found.speedup == 8.0
    assert not found.steady
    assert found.at_best is not None
    assert found.at_best.speedup == 4.0
