import importlib
import json
import os
import re
import sys
import threading
import time
import warnings

import click
import pytest

from odm_deploy import errors, terminal
from odm_deploy.installing import install_extra
from odm_deploy.progress import PercentStage, steps
from odm_deploy.terminal import emit_json, print_table, progress, progress_alone, run, say, show, table


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program"])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.OdmError("broke"), 1, "error: broke"),
        (errors.InputError("cannot read x", why="empty", fix="copy it"), 1, "error: cannot read x: empty; copy it"),
        (errors.BuildError("refused"), 1, "error: refused"),
        (errors.UsageError("no"), 2, "error: no"),
        (errors.GateError("too far"), 3, "error: too far"),
        (errors.MissingError("no GPU"), 4, "error: no GPU"),
        (click.ClickException("broke"), 1, "error: broke"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("1 of 2\nimages"), 130, r"interrupted: 1 of 2\nimages"),
        (click.Abort(), 130, "interrupted"),
    ],
)
def test_errors_become_one_line_and_their_exit_code(capsys, error, code, line):
    @click.command
    def failing() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run(failing, "program")
    out, err = capsys.readouterr()
    assert caught.value.code == code
    assert out == ""
    assert err.strip() == line


def test_running_out_of_memory_is_told(capsys):
    @click.command
    def failing() -> None:
        raise MemoryError

    with pytest.raises(SystemExit) as caught:
        run(failing, "program")
    assert caught.value.code == 1
    assert "out of memory" in capsys.readouterr().err


def test_a_bug_is_not_swallowed():
    @click.command
    def failing() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(failing, "program")


def test_json_goes_to_stdout_and_knows_no_infinity(capsys):
    emit_json({"psnr": float("inf"), "rows": [{"x": float("nan")}, (1, -float("inf"))], "name": "ä"})
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out, parse_constant=pytest.fail) == {"psnr": None, "rows": [{"x": None}, [1, None]], "name": "ä"}


STRANGE = "[/x] [red]a[0] \x1b]0;b\x07 \u202egnp"


def test_names_are_neither_styles_nor_commands_to_the_terminal(capsys):
    print_table(table(STRANGE, ("layer", STRANGE), [(STRANGE, "1"), ("two\nlines", "2")]))
    show(STRANGE, "second")
    say(f"two\n{STRANGE}\nerror: of nobody")
    out, err = capsys.readouterr()
    shown = "[/x] [red]a[0] \\x1b]0;b\\x07 \\u202egnp"
    assert out.count(shown) == 4 and out.endswith(f"\n{shown}\nsecond\n")
    assert "two\\nlines" in out and err == f"two\\n{shown}\\nerror: of nobody\n"
    assert not set(out + err) & set("\x1b\x07\u202e")


def test_talk_goes_to_stderr(capsys):
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_progress_hands_on_every_item_and_says_nothing_of_what_is_done_at_once(capsys):
    with progress("counting") as track:
        assert list(track(iter("abc"), 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_where_there_is_no_terminal_progress_is_lines_with_what_is_left(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0.05)
    said: list[str] = []

    def until(line):
        """Wait for a line, however busy the machine is."""
        latest = time.monotonic() + 60.0
        while not any(re.fullmatch(line, each) for each in said):
            assert time.monotonic() < latest, said
            time.sleep(0.02)
            said.extend(capsys.readouterr().err.splitlines())

    with progress("counting") as track:
        for index in track(range(3), 3):
            until(rf"counting: {index} of 3, \d+ s.*")
            # An item that takes longer than those before it has nothing left that could be told.
            time.sleep(0.6 if index < 2 else 0.0)
        for index in track(range(2), 2, "weighing"):
            until(rf"weighing: {index} of 2, \d+ s.*")
    said.extend(capsys.readouterr().err.splitlines())
    assert said[0].startswith("counting: 0 of 3, 0 s")
    assert any(re.fullmatch(r"counting: 2 of 3, \d+ s, \d+ s left", line) for line in said)
    assert said[-1].startswith("weighing: 1 of 2")


def test_that_a_stage_is_over_is_said_once(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0.05)
    with progress("counting") as track:
        for _ in track(range(3), 3):
            pass
        time.sleep(0.4)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_is_left_shrinks_while_an_item_takes_its_time_and_is_not_told_at_the_end(monkeypatch):
    def told(at: float, done: int) -> str:
        monkeypatch.setattr(time, "monotonic", lambda: at)
        return str(terminal._Stage("timing", 2, started=0.0, done=done, last=10.0))

    assert told(10.0, 1) == "timing: 1 of 2, 10 s, 10 s left"
    assert told(14.0, 1) == "timing: 1 of 2, 14 s, 6 s left"
    assert told(30.0, 1) == "timing: 1 of 2, 30 s"
    assert told(30.0, 2) == "timing: 2 of 2, 30 s"


def test_parts_of_a_time_are_told_in_percent(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 10.0)
    stage = terminal._Stage(PercentStage("fine-tuning"), 50, 0.0, done=20, last=10.0)
    assert str(stage) == "fine-tuning: 40 %, 10 s, 15 s left"


@pytest.mark.parametrize(("package", "extra"), [("torch", "export"), ("onnxscript", "export"), ("matplotlib", "train")])
def test_a_package_of_an_extra_that_is_missing_is_named(package, extra, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)

    @click.command
    def failing() -> None:
        importlib.import_module(package)

    with pytest.raises(SystemExit) as caught:
        run(failing, "program")
    assert caught.value.code == 4
    line = capsys.readouterr().err
    assert line.startswith(f"error: {package} is not installed: ")
    assert line.endswith(f"{install_extra(extra)}\n")


def test_steps_are_told_by_the_parts_of_the_time_that_they_take(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0.15)
    threads = threading.active_count()
    with steps(progress_alone, (60, 30, 10), "lowering") as begin:
        begin()
        time.sleep(0.4)
        begin()
        time.sleep(0.4)
        begin()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "lowering: 0 %, 0 s"
    assert any(line.startswith("lowering: 60 %, 0 s, 0 s left") for line in lines)
    # More steps than was said are none more, and work that fails ends as well.
    begins = []
    with pytest.raises(ZeroDivisionError), steps(progress_alone, (1,), "more") as begin:
        begins.append([begin() for _ in range(3 // len(begins))])
    assert threading.active_count() == threads


def test_progress_shows_the_speed_in_the_unit_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("frames", "fps") as track:
        for _ in track(range(4), 4):
            time.sleep(0.15)
    assert re.search(r"\d+\.\d fps", capsys.readouterr().err)


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_leave_the_cores_to_others(monkeypatch, given, expected):
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    found = []

    @click.command
    def command() -> None:
        found.append(os.environ["OMP_WAIT_POLICY"])

    with pytest.raises(SystemExit):
        run(command, "program")
    assert found == [expected]


@pytest.mark.parametrize(("asked", "told"), [([], 0), (["default"], 1)])
def test_warnings_of_libraries_are_told_to_those_who_ask_for_them(asked, told, monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", asked)

    @click.command
    def command() -> None:
        warnings.warn("meshgrid will want an argument", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        with pytest.raises(SystemExit):
            run(command, "program")
    assert len(caught) == told
