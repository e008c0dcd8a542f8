import json
import re
import sys
import time

import click
import pytest

from odm_deploy import errors
from odm_deploy.terminal import emit_json, progress, run, say


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
        (click.ClickException("broke"), 1, "Error: broke"),
        (KeyboardInterrupt(), 130, "interrupted"),
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


def test_talk_goes_to_stderr(capsys):
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_progress_hands_on_every_item_and_is_silent_where_there_is_no_terminal(capsys):
    with progress("counting") as track:
        assert list(track(iter("abc"), 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_progress_shows_the_speed_in_the_unit_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("frames", "fps") as track:
        for _ in track(range(4), 4):
            time.sleep(0.15)
    assert re.search(r"\d+\.\d fps", capsys.readouterr().err)
