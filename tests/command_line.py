"""`odm-deploy` in the test's own process: exit code, stdout and stderr as a shell would see them, in milliseconds."""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import dataclass
from typing import Any

from odm_deploy.cli.program import odm_deploy
from odm_deploy.terminal import report_error


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """Stdout as JSON, alone."""
        parsed: dict[str, Any] = json.loads(self.stdout)
        return parsed


def run_cli(*arguments: object) -> Outcome:
    """Run `odm-deploy ARGUMENTS` as `terminal.run` does. An undocumented exception is not caught: it is a bug."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            result = odm_deploy.main([str(each) for each in arguments], prog_name="odm-deploy", standalone_mode=False)
            code = result if isinstance(result, int) else 0
        except (Exception, KeyboardInterrupt) as error:
            code = report_error(error)
    # Whether imports take long enough to be told depends on the tests that ran before, and on the machine.
    return Outcome(code, stdout.getvalue(), stderr.getvalue().replace("loading PyTorch\n", ""))


def without_progress(output: str) -> str:
    """What a program printed into a pipe, without progress: how often that is told depends on how busy a machine is."""
    return re.sub(r"^(?:[^\n]*: \d+ (?:of \d+|%), \d.*|loading PyTorch)\n", "", output, flags=re.M)
