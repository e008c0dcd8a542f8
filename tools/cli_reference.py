"""docs/cli.md, from the commands' own help: `python tools/cli_reference.py > docs/cli.md`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from odm_deploy.cli.program import odm_deploy
from training.__main__ import command as training

WIDTH = 100
"""Characters of a line of help."""

INTRODUCTION = """\
# Commands

What `--help` prints, written by `python tools/cli_reference.py > docs/cli.md`.

The Tab key completes verbs and options after `eval "$(_ODM_DEPLOY_COMPLETE=bash_source odm-deploy)"`, best in
`~/.bashrc`. For zsh `zsh_source` in `~/.zshrc`; for fish `_ODM_DEPLOY_COMPLETE=fish_source odm-deploy | source`.
"""


def reference() -> str:
    """The whole page, markdown."""
    sections = [_section(name, command) for name, command in commands()]
    return "\n".join([INTRODUCTION, *sections])


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command, with the name it is called by."""
    yield "odm-deploy", odm_deploy
    context = click.Context(odm_deploy)
    for verb in odm_deploy.list_commands(context):
        command = odm_deploy.get_command(context, verb)
        assert command is not None, verb
        yield f"odm-deploy {verb}", command
    yield "python -m training", training


def _section(name: str, command: click.Command) -> str:
    context = click.Context(
        command,
        info_name=name,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
        show_default=True,
    )
    return f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    print(reference(), end="")
