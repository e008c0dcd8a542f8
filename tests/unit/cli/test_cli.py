import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from odm_deploy import __version__
from odm_deploy.cli import main
from odm_deploy.cli.options import RUNTIMES
from odm_deploy.cli.program import EXAMPLES, VERBS, odm_deploy
from tests.command_line import run_cli

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


def test_a_bare_call_shows_what_there_is():
    done = run_cli()
    assert done.code == 2
    assert "Commands:\n  quantize " in done.stdout
    assert done.stdout == run_cli("--help").stdout
    assert done.stderr == ""


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


def verbs() -> dict[str, click.Command]:
    return {verb: odm_deploy.get_command(click.Context(odm_deploy), verb) for verb in VERBS}


@pytest.mark.parametrize("verb", VERBS)
def test_help_begins_with_an_example_that_the_verb_takes(verb):
    command = verbs()[verb]
    help_ = command.get_help(click.Context(command, info_name=f"odm-deploy {verb}"))
    example = help_.splitlines()[2].strip()
    assert example == f"$ odm-deploy {EXAMPLES[verb]}"
    command.make_context(verb, shlex.split(example)[3:])


def test_choices_are_listed_and_defaults_shown_one_way():
    from odm_deploy.runtimes.registry import RUNTIME_NAMES

    assert RUNTIME_NAMES == RUNTIMES
    for verb, command in verbs().items():
        for option in command.params:
            if not isinstance(option, click.Option):
                continue
            text = option.help or ""
            assert not re.search(r"[;(] ?default|\.\.\. ", text), (verb, option.name)
            assert text.count("[default:") == text.count("  [default:"), (verb, option.name)
            # `inspect` asks those on CPUs only; engines it asks their builder about.
            if option.name == "runtime" and verb != "inspect":
                assert all(name in text for name in RUNTIME_NAMES), verb


def test_the_shell_completes_verbs():
    environment = {**os.environ, "COMP_WORDS": "odm-deploy up", "COMP_CWORD": "1"}
    environment["_ODM_DEPLOY_COMPLETE"] = "bash_complete"
    command = [Path(sys.executable).with_name("odm-deploy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "plain,upscale\n"


def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_nothing_imports_a_command(pytestconfig):
    root = pytestconfig.rootpath
    files = [
        path for folder in ("odm_deploy", "training", "calibration", "tools") for path in root.glob(f"{folder}/**/*.py")
    ]
    commands = {f"odm_deploy.cli.{verb}" for verb in VERBS}
    assert len(files) > 100
    # `python -m calibration` is an older name of a command.
    other_name = root / "calibration" / "__main__.py"
    assert [path for path in files if imports_of(path) & commands] == [other_name]


def call(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["odm-deploy", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_help_lists_every_verb(capsys, monkeypatch):
    code, out, err = call(capsys, monkeypatch, "--help")
    assert (code, err) == (0, "")
    assert all(f"\n  {verb} " in out for verb in VERBS)
    assert "Exit codes" in out


def test_version_is_the_packages(capsys, monkeypatch):
    assert call(capsys, monkeypatch, "--version")[:2] == (0, f"odm-deploy, version {__version__}\n")


@pytest.mark.parametrize("arguments", [["frobnicate"], ["--frobnicate"], ["export", "--frobnicate"]])
def test_a_wrong_call_ends_with_2_and_one_explanation(capsys, monkeypatch, arguments):
    code, out, err = call(capsys, monkeypatch, *arguments)
    assert (code, out) == (2, "")
    assert "frobnicate" in err
    assert "Traceback" not in err
