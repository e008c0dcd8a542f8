"""How `gpu_report.py` gets through its steps: each bounded in time, none of them able to end the others.

Results are JSON documents, kept in the report's folder; {"failed": why} stands for one that did not come about.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from toolbox import read_json, run_python, write_json

from odm_deploy.files import atomic_path

Result = dict[str, Any]
Results = dict[str, Result]

LONGEST_S = 900
_SHORTEST_S = 5.0
_RESERVED_S = 5.0
_ARCHIVE = "report.tar.gz"
# Made again by the same commands, and larger than all the rest.
_LEFT_OUT = {".plan", ".onnx", ".pt", ".gz"}


@dataclass(frozen=True)
class Step:
    """One measurement."""

    name: str
    """Its file in the report's folder, without `.json`."""
    what: str
    """What it measures, for people."""
    run: Callable[[float], Result]
    """Measures within so many seconds; anything it raises is its result."""
    weight: float = 1.0
    """How long it takes, beside the other steps."""
    needs: tuple[str, ...] = ()
    """Names of steps without whose success it makes no sense."""


class Budget:
    """The time that is left, shared out among the steps to come."""

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Less what the last page and the archive take.
        self._end = None if minutes is None else clock() + 60 * minutes - _RESERVED_S

    @property
    def left_s(self) -> float:
        """Seconds left; without a budget, as many as one step may take."""
        return LONGEST_S if self._end is None else max(0.0, self._end - self._clock())

    def allowance(self, step: Step, coming: Sequence[Step]) -> float:
        """Seconds that `step`, the first of those `coming`, may take.

        Its share by weight, and up to half of what is left: steps come in the order of their worth.
        """
        if self._end is None:
            return LONGEST_S
        share = self.left_s * step.weight / sum(each.weight for each in coming)
        return min(LONGEST_S, max(share, self.left_s / 2, min(self.left_s, _SHORTEST_S)))


def run_steps(steps: Sequence[Step], out: Path, budget: Budget, write_page: Callable[[Results], None]) -> Results:
    """Take the steps one after the other, and write the page again after each. Steps not reached have no result."""
    results: Results = {}
    for index, step in enumerate(steps):
        found = _kept(out / f"{step.name}.json")
        missing = [each for each in step.needs if "failed" in results.get(each, {"failed": ""})]
        if found is None and missing:
            # Whoever reads the page sees why that one failed.
            if all(each in results for each in missing):
                results[step.name] = {"failed": f"it needs {Path(missing[0]).name}, which failed"}
        elif found is None:
            allowance = budget.allowance(step, steps[index:])
            if allowance < _SHORTEST_S:
                continue
            click.echo(f"measuring {step.name}, {allowance:.0f} s at most", err=True)
            found = _measure(step, allowance)
            if "failed" not in found:
                (out / f"{step.name}.json").parent.mkdir(parents=True, exist_ok=True)
                write_json(out / f"{step.name}.json", found)
        if found is not None:
            results[step.name] = found
        write_page(results)
    return results


def verb(*arguments: object) -> Callable[[float], Result]:
    """A step that is a verb of odm-deploy: the JSON it prints, or the line it fails with."""

    def measure(seconds: float) -> Result:
        code, output, errors = run_python("odm_deploy", *arguments, "--json", timeout_s=seconds)
        # 3: a gate was not met, which is a result.
        if code in (0, 3) and output.strip():
            try:
                found: Any = json.loads(output)
            except ValueError:
                return {"failed": f"it printed no JSON but {output.strip()[:100]!r}"}
            return found if isinstance(found, dict) else {"failed": f"it printed {type(found).__name__}"}
        return {"failed": f"exit code {code}: {last_line(errors)}"}

    return measure


def last_line(text: str) -> str:
    """The last line of what a program said."""
    return (text.strip().splitlines() or ["it printed nothing"])[-1]


def pack(out: Path) -> Path:
    """Put what the report's folder holds into one archive in it, but for models, graphs and plans."""
    archive = out / _ARCHIVE
    with atomic_path(archive) as temporary, tarfile.open(temporary, "w:gz") as tar:
        for path in sorted(out.rglob("*")):
            if path.is_file() and path.suffix not in _LEFT_OUT and path != temporary:
                tar.add(path, Path(out.name) / path.relative_to(out))
    return archive


def not_reached(steps: Sequence[Step], results: Mapping[str, Result]) -> list[str]:
    """What the steps without a result would have measured."""
    return [step.what for step in steps if step.name not in results]


def _measure(step: Step, seconds: float) -> Result:
    try:
        return step.run(seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {seconds:.0f} s"}
    except Exception as error:  # whatever it is, the other steps have nothing to do with it
        return {"failed": last_line(f"{type(error).__name__}: {error}")}


def _kept(path: Path) -> Result | None:
    try:
        found: Any = read_json(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
