import importlib
import json
import re
import subprocess
import sys
import time

import click
import pytest

from odm_deploy import __version__, errors
from odm_deploy.cli import VERBS, odm_deploy, run
from odm_deploy.cli.output import emit_json, progress, say

HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "polygraphy", "PIL", "rich")

RUN_AND_NAME_IMPORTS = """
import sys
try:
    from odm_deploy.cli import main
    main()
finally:
    print("imported:", *(name for name in sys.argv[0].split(",") if name in sys.modules), file=sys.stderr)
"""


def imported_by(*arguments: str) -> list[str]:
    """Which of the heavy packages a call of `odm-deploy` imports; the call must succeed."""
    code = f"import sys; sys.argv = [{','.join(HEAVY)!r}, *sys.argv[1:]]\n{RUN_AND_NAME_IMPORTS}"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(arguments):
    assert imported_by(*arguments) == []


def test_the_check_for_imports_can_fail():
    code = f"import sys, json, numpy; sys.argv = ['numpy', '--help']\n{RUN_AND_NAME_IMPORTS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "imported: numpy"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_works_without_torch(verb):
    assert "torch" not in imported_by(verb, "--help")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_documented_command(verb):
    command = importlib.import_module(f"odm_deploy.cli.{verb}").command
    assert isinstance(command, click.Command)
    assert command.help
    undocumented = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert undocumented == []


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        run_arguments(odm_deploy, arguments)
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def run_arguments(command: click.Command, arguments: tuple[str, ...]) -> None:
    previous, sys.argv = sys.argv, ["odm-deploy", *arguments]
    try:
        run(command, "odm-deploy")
    finally:
        sys.argv = previous


def test_help_lists_every_verb(capsys):
    code, out, err = call(capsys, "--help")
    assert (code, err) == (0, "")
    assert all(f"\n  {verb} " in out for verb in VERBS)
    assert "Exit codes" in out


def test_version(capsys):
    assert call(capsys, "--version")[:2] == (0, f"odm-deploy, version {__version__}\n")


@pytest.mark.parametrize("arguments", [["frobnicate"], ["--frobnicate"], ["export", "--frobnicate"]])
def test_a_wrong_call_ends_with_2_and_one_explanation(capsys, arguments):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "frobnicate" in err
    assert "Traceback" not in err


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
        run_arguments(failing, ())
    out, err = capsys.readouterr()
    assert caught.value.code == code
    assert out == ""
    assert err.strip() == line


def test_running_out_of_memory_is_told(capsys):
    @click.command
    def failing() -> None:
        raise MemoryError

    with pytest.raises(SystemExit) as caught:
        run_arguments(failing, ())
    assert caught.value.code == 1
    assert "out of memory" in capsys.readouterr().err


def test_a_bug_is_not_swallowed():
    @click.command
    def failing() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_arguments(failing, ())


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
