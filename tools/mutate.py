"""The mutation check of the proof: faults planted into bundles, and who notices.

python tools/mutate.py --out mutants.json                                  all of it, tens of minutes
python tools/mutate.py --network edsr --runtime onnxruntime --no-inspect   a part, seconds

Every fault of the list (tools/mutations/) goes into every network, profile and runtime. The table says who caught it
and how many output values it changed. Ends with 1 if a fault changed more values than rounding explains and verify said
yes. Rows already in --out are not judged again.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import click
from mutations.faults import all_faults
from mutations.judging import Sound, Verdict, claim_another_version, judge, judge_sound, to_dict
from mutations.subjects import PROFILES, PUBLIC, RUNTIMES, SIZES, all_subjects
from toolbox import COMMAND, markdown_table, read_json, write_json

from odm_deploy.errors import UsageError
from odm_deploy.terminal import run

CRASHED = "the process crashed"


@click.command(context_settings=COMMAND)
@click.option("--network", "networks", multiple=True, type=click.Choice([*SIZES, *PUBLIC]), default=tuple(SIZES))
@click.option("--profile", "profiles", multiple=True, type=click.Choice(PROFILES), default=PROFILES)
@click.option("--runtime", "runtimes", multiple=True, type=click.Choice(RUNTIMES), default=RUNTIMES)
@click.option("--subject", "only", help="Only bundles whose name holds this, as '4 for CPUs'.", default="")
@click.option("--fault", "wanted", help="Only faults whose name holds this.", default="")
@click.option(
    "--inspect/--no-inspect", "inspecting", default=True, help="Also build each mutant with TensorRT for RTX."
)
@click.option("--foreign", is_flag=True, help="Let each graph say that another version wrote it, with a node more.")
@click.option("--minutes", type=float, help="Stop after so long.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file that verdicts are kept in and resumed from.")
def command(
    networks: tuple[str, ...],
    profiles: tuple[str, ...],
    runtimes: tuple[str, ...],
    only: str,
    wanted: str,
    inspecting: bool,
    foreign: bool,
    minutes: float | None,
    out: Path | None,
) -> None:
    """Plant faults, and print who caught them."""
    verdicts: dict[str, dict[str, Any]] = read_json(out) if out is not None and out.exists() else {}
    faults = [name for name in all_faults() if wanted in name]
    pool, deadline = _Pool(), math.inf if minutes is None else time.monotonic() + 60 * minutes
    subjects = [
        each for each in all_subjects() if each.network in networks and each.profile in profiles and only in each.name
    ]
    if not subjects or not faults:
        raise UsageError("nothing to plant", why=f"no bundle is called {only!r} or no fault {wanted!r}")
    for subject in subjects:
        name = f"{subject.name}, of another version" if foreign else subject.name
        todo = [
            (runtime, fault) for runtime in runtimes for fault in faults if f"{name}|{runtime}|{fault}" not in verdicts
        ]
        if not todo or time.monotonic() > deadline:
            continue
        with tempfile.TemporaryDirectory(prefix="subject-") as folder:
            bundle = subject.write(Path(folder))
            if foreign:
                claim_another_version(bundle, subject.graph)
            sounds: dict[str, Sound] = {}
            for runtime, fault in todo:
                if time.monotonic() > deadline:
                    break
                if runtime not in sounds:
                    # An engine is built once a fault, not once a runtime.
                    builds = inspecting and runtime == runtimes[0]
                    images = Path(folder) / "images"
                    sounds[runtime] = judge_sound(bundle, images, runtime, inspecting=builds, graph=subject.graph)
                verdicts[f"{name}|{runtime}|{fault}"] = pool.judge(fault, sounds[runtime])
                if out is not None:
                    write_json(out, verdicts)
        click.echo(f"{name}: {len(todo)} mutants", err=True)
    pool.close()
    chosen = {key: verdict for key, verdict in verdicts.items() if verdict}
    click.echo(to_markdown(chosen))
    escaped = [key for key, verdict in chosen.items() if Verdict(**verdict).escaped]
    for key in escaped:
        click.echo(f"escaped: {key}: {chosen[key]}")
    sys.exit(1 if escaped else 0)


class _Pool:
    """One process that mutants are judged in: a broken graph may end a runtime with a signal."""

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None

    def judge(self, fault: str, sound: Sound) -> dict[str, Any]:
        """A verdict as plain values; empty where there is no place for the fault."""
        if self._executor is None:
            self._executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            return self._executor.submit(_judge, fault, sound).result()
        except BrokenProcessPool:
            self._executor = None
            return to_dict(Verdict("?", verify=CRASHED, computed=CRASHED))

    def close(self) -> None:
        """End the process."""
        if self._executor is not None:
            self._executor.shutdown()


def _judge(fault: str, sound: Sound) -> dict[str, Any]:
    verdict = judge(all_faults()[fault], sound)
    return {} if verdict is None else to_dict(verdict)


def to_markdown(verdicts: dict[str, dict[str, Any]]) -> str:
    """A line a fault: mutants, who caught them, and the median and largest share of values changed."""
    by_fault: dict[str, list[Verdict]] = defaultdict(list)
    for key, verdict in verdicts.items():
        by_fault[key.split("|")[2]].append(Verdict(**verdict))
    rows: list[tuple[object, ...]] = []
    for fault, found in by_fault.items():
        noticed: Counter[str] = Counter()
        for verdict in found:
            noticed.update(name for name in ("lint", "inspect", "verify", "computed") if getattr(verdict, name))
            noticed["nothing"] += verdict.caught_by == "nothing"
        unseen = [verdict.changed for verdict in found if verdict.caught_by == "nothing"]
        shares = sorted(verdict.changed / max(verdict.values, 1) for verdict in found)
        columns = [str(noticed[name] or "") for name in ("lint", "inspect", "verify", "computed", "nothing")]
        most = f"{max(unseen)} values" if unseen else ""
        median = f"{shares[len(shares) // 2]:.2%}"
        rows.append((fault, len(found), *columns, median, most, sum(verdict.escaped for verdict in found)))
    catchers = ("lint", "inspect", "verify", "verify, by values alone", "nothing")
    head = ("fault", "mutants", *catchers, "values changed, median")
    return markdown_table((*head, "most by one that nobody caught", "escaped"), rows)


if __name__ == "__main__":
    run(command, "mutate.py")
