"""The report about a GPU gets through its steps whatever they do, and in time; the page is written after each."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.tool_modules import load_tool


@pytest.fixture(scope="module")
def steps() -> ModuleType:
    return load_tool("gpu_report_steps")


@pytest.fixture(scope="module")
def page(steps: ModuleType) -> ModuleType:
    return load_tool("gpu_report_page")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ok(_: float) -> dict[str, Any]:
    return {"fine": True}


def failing(error: BaseException) -> Any:
    def run(_: float) -> dict[str, Any]:
        raise error

    return run


def test_nothing_that_a_step_does_ends_the_others(steps: ModuleType, tmp_path: Path) -> None:
    pages: list[dict[str, Any]] = []
    todo = [
        steps.Step("late", "a", failing(subprocess.TimeoutExpired("x", 7))),
        steps.Step("bad", "b", failing(KeyError("gpus"))),
        steps.Step("after", "c", ok, needs=("bad",)),
        steps.Step("in/folder", "d", ok),
        steps.Step("last", "e", ok, needs=("in/folder",)),
    ]
    results = steps.run_steps(todo, tmp_path, steps.Budget(None), lambda found: pages.append(dict(found)))
    assert results == {
        "late": {"failed": "took longer than 900 s"},
        "bad": {"failed": "KeyError: 'gpus'"},
        "after": {"failed": "it needs bad, which failed"},
        "in/folder": {"fine": True},
        "last": {"fine": True},
    }
    assert [len(each) for each in pages] == [1, 2, 3, 4, 5]
    # What failed is tried again by the next report, what did not is kept.
    assert sorted(path.name for path in tmp_path.rglob("*.json")) == ["folder.json", "last.json"]


def test_time_is_shared_out_and_what_is_not_reached_is_named(steps: ModuleType, tmp_path: Path) -> None:
    clock, allowed = Clock(), list[float]()

    def slow(seconds: float) -> dict[str, Any]:
        allowed.append(seconds)
        clock.now += seconds
        return {}

    budget = steps.Budget(1 + 5 / 60, clock)
    todo = [steps.Step(f"s{index}", f"step {index}", slow, weight) for index, weight in enumerate((1, 1, 6, 1, 1, 1))]
    results = steps.run_steps(todo, tmp_path, budget, lambda _: None)
    # Half of what is left, or more where a step's share is more; for the last there is nothing left.
    assert allowed == [30.0, 15.0, pytest.approx(15 * 6 / 9), pytest.approx(5.0)]
    assert clock.now <= 60
    assert steps.not_reached(todo, results) == ["step 4", "step 5"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((0, "no json", ""), "printed no JSON but 'no json'"),
        ((0, "[1]", ""), "printed list"),
        ((0, "", ""), "exit code 0: it printed nothing"),
        ((4, "", "first\nno GPU\n"), "exit code 4: no GPU"),
        ((-9, "", ""), "exit code -9"),
    ],
)
def test_what_a_verb_prints_instead_of_json_is_told(
    steps: ModuleType, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str, str], words: str
) -> None:
    monkeypatch.setattr(steps, "run_python", lambda *_, timeout_s: answer)
    assert words in steps.verb("bench")(5.0)["failed"]
    monkeypatch.setattr(steps, "run_python", lambda *_, timeout_s: (3, '{"passed": false}', "a gate"))
    assert steps.verb("verify")(5.0) == {"passed": False}


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are of POSIX")
def test_a_process_out_of_time_ends_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, mark = tmp_path / "parent.py", tmp_path / "pid"
    # The child holds the parent's output open, as a builder does, and would keep us waiting.
    script.write_text(
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(mark)!r} + '.new').write_text(str(child.pid))\n"
        f"pathlib.Path({str(mark)!r} + '.new').rename({str(mark)!r})\n"
        "time.sleep(600)\n"
    )
    communicate = subprocess.Popen.communicate

    def until_it_runs(process: Any, timeout: float | None = None) -> Any:
        """The time is over as soon as the child is there, however slow this machine is."""
        if timeout is None:
            return communicate(process)
        while not mark.exists() and process.poll() is None:
            time.sleep(0.02)
        raise subprocess.TimeoutExpired("parent", timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", until_it_runs)
    with pytest.raises(subprocess.TimeoutExpired):
        load_tool("toolbox").run_python(script, timeout_s=5)
    state = Path(f"/proc/{mark.read_text()}/stat")

    def runs() -> bool:
        try:
            return state.read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    # A killed process takes its time to go; one that was not killed sleeps for ten minutes.
    for _ in range(1000):
        if not runs():
            break
        time.sleep(0.02)
    assert not runs()


def test_a_machine_that_nobody_could_look_at_is_a_line(page: ModuleType) -> None:
    assert page.machine({"failed": "exit code -11: it printed nothing"}) == [
        "- doctor: exit code -11: it printed nothing"
    ]


def test_the_page_shows_both_speeds_and_the_reason_for_no_twin(page: ModuleType) -> None:
    times = {"p50": 1.0, "p99": 1.2}
    base = {"latency_ms": times, "compute_ms": times, "images_per_s": 900.0, "mpix_per_s": 90.0}
    twin = {**base, "model": "float twin (fp16)", "back_to_back_ms": 1.9}
    found = {**base, "back_to_back_ms": 0.95, "speedup": 1.8, "back_to_back_speedup": 2.0, "baseline": twin}
    lone = {**base, "baseline": None, "baseline_note": "onnx-ir is not installed"}
    text = "\n".join(page.latencies([("96x96", "int8", found), ("96x96", "fp32", lone)]))
    assert "| 96x96 | int8 | 1 | 1.2 | 0.95 | 900 | 90 |" in text
    assert "float twin (fp16), int8 is 1.80 times as fast (2.00 back to back) | 1 | 1.2 | 1.9 |" in text
    assert "- fp32, at 96x96: no float twin: onnx-ir is not installed" in text


def test_training_that_was_cut_off_shows_what_there_is(
    page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = load_tool("gpu_report")
    rows = [
        {"recipe": "edsr", "steps_per_second": 10.0, "ratio": 1.0},
        {"recipe": "edsr,run.compile=true", "steps_per_second": 25.0, "ratio": 0.4},
        {"recipe": "edsr,run.cuda_graphs=true", "failed": "out of memory"},
    ]

    def cut_off(*arguments: Any, timeout_s: float) -> tuple[int, str, str]:
        output = arguments[arguments.index("--output") + 1]
        output.write_text(json.dumps({"torch": "2.11", "device": "H100", "steps": rows}))
        raise subprocess.TimeoutExpired("step_time", timeout_s)

    monkeypatch.setattr(program, "run_python", cut_off)
    text = "\n".join(page.training(program.time_training(tmp_path, 60.0)))
    assert "edsr; torch 2.11 on H100; cut off after 60 s" in text
    assert "| plain | 10 | 1.00 |  |" in text
    assert "| run.compile=true | 25 | 2.50 |  |" in text
    assert "| run.cuda_graphs=true |  |  | out of memory |" in text
