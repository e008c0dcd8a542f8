"""Our models beside what people would use instead, on the runtimes of this machine: one JSON, one table, one plot.

    make bench                                                    all networks; hours
    python tools/bench.py --network edsr --size 320x180 -o bench  one of them; minutes
    python tools/bench.py --check bench.json                      warn where a ratio is worse than the committed ones

Every network is timed in all its forms in alternation, as many at once as fit into memory, and what is reported are
ratios to the float network on ONNX Runtime at the same time. Rows whose durations lie far apart are timed again; those
that stay so are compared by their fastest runs where several agree ("at best"), or else are unsteady, name no winner,
and do not count in the check. Calibrated models and rows are kept in the folder, so a run that was interrupted goes on;
a row is timed again where it is deleted from bench.json.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from benchmark import results
from benchmark.forms import COMMAND_FORM, FORMS, Forms, policy_of
from benchmark.instructions import instructions
from benchmark.measuring import timings
from benchmark.roofline import highest, machine_peaks
from benchmark.subjects import SUBJECTS
from toolbox import COMMAND, ROOT, read_json, write_json

from odm_deploy import documents
from odm_deploy.errors import InputError, OdmError
from odm_deploy.files import write_text
from odm_deploy.machine.host import describe_cpu, physical_cpus
from odm_deploy.terminal import SIZE, run, say

COMMITTED = ROOT / "docs" / "measurements" / "bench"
"""A file for each machine that was measured."""


@click.command(context_settings=COMMAND)
@click.option("--network", "networks", multiple=True, type=click.Choice(list(SUBJECTS)), help="Repeatable. [all]")
@click.option("--form", "forms", multiple=True, help="Repeatable: PROFILE BITS [head BITS], or 'quantize OPTIONS'.")
@click.option("--size", "sizes", multiple=True, type=SIZE, metavar="WxH", help="Input; repeatable. [each network's]")
@click.option("--weights", type=click.Path(path_type=Path), help="Folder of weights. [$ODM_WEIGHTS]")
@click.option("--images", type=click.Path(path_type=Path), help="To calibrate on. [the samples of this repository]")
@click.option("--benchmark", type=click.Path(path_type=Path), help="HR and LR_bicubic, to judge by. [the samples]")
@click.option("--nncf-python", type=click.Path(path_type=Path), help="Interpreter of an environment with NNCF.")
@click.option("--seconds", default=60.0, show_default=True, help="To time one network at one size.")
@click.option("--prepare", is_flag=True, help="Only make and judge what will be timed, on a machine that is busy.")
@click.option(
    "-o", "--output", default=Path("bench"), show_default=True, type=click.Path(path_type=Path), help="Folder."
)
@click.option(
    "--check", type=click.Path(path_type=Path, exists=True), help="Compare this bench.json with the committed."
)
def command(
    networks: tuple[str, ...],
    forms: tuple[str, ...],
    sizes: tuple[tuple[int, int], ...],
    weights: Path | None,
    images: Path | None,
    benchmark: Path | None,
    nncf_python: Path | None,
    seconds: float,
    prepare: bool,
    output: Path,
    check: Path | None,
) -> int:
    """Measure, and keep each network's rows as soon as they are known.

    Models of both sides and what they lose are kept in the folder, too, and made once.
    """
    if check is not None:
        return compare(check)
    for form in forms:
        if not form.startswith(COMMAND_FORM):
            policy_of(form)
    folder = weights or Path(os.environ.get("ODM_WEIGHTS", ROOT.parent / "shared" / "weights"))
    output.mkdir(parents=True, exist_ok=True)
    path = output / "bench.json"
    document: dict[str, Any] = read_json(path) if path.exists() else {"rows": []}
    if not prepare:
        peaks = highest(machine_peaks(), document.get("peaks", {}))
        document |= {"machine": describe_cpu(physical_cpus()), "features": instructions(), "peaks": peaks}
    for name in networks or SUBJECTS:
        subject = SUBJECTS[name]
        try:
            network = Forms(subject, folder, images, benchmark, forms or FORMS, nncf_python, output)
        except OdmError as error:
            say(f"{name} left out: {error}")
            continue
        network.lost()
        for size in [(height, width) for width, height in sizes] or list(subject.sizes):
            known = results.known_variants(document, name, size)
            missing = [variant for variant in network.variants if variant.key not in known]
            if prepare or not missing:
                continue
            say(f"{name} at {size[1]}x{size[0]}")
            for group in timings(missing, network.base, size, seconds):
                new = [key for key in group if key not in results.known_variants(document, name, size)]
                document["rows"] += [network.row(key, group[key], size, document["peaks"]) for key in new]
                write_json(path, document)
    if prepare:
        return 0
    write_text(output / "bench.md", results.markdown(document))
    results.draw(document, output / "bench.png")
    click.echo(results.markdown(document))
    return 0


def compare(path: Path) -> int:
    """Say which ratios of a run are worse than the committed ones; the exit code.

    Raises:
        InputError: it is not what this tool writes, or none of them can be compared.
    """
    found = documents.read_json(path)
    with documents.taken_from(path):
        place, committed = _most_alike(found)
        worse, (count, at_best) = results.worse_ratios(committed, found), results.comparable(committed, found)
        unsteady = results.unsteady_rows(committed, found)
    for line in worse:
        say(f"warning: {line}")
    for line in unsteady:
        say(f"unsteady, not counted: {line}")
    if not count:
        raise InputError(
            f"no ratio of {path} can be compared with {place}",
            why="its rows are of other sizes or variants, or unsteady in one of the two",
            fix="run make bench on an idle machine, at a size of that file",
        )
    machine = ", ".join(committed["features"])
    ratios = f"{count} steady ratios{f' ({at_best} of them at best)' if at_best else ''}"
    say(f"{len(worse)} of {ratios} are more than {results.TOLERANCE:.0%} worse than in {place} ({machine})")
    return 3 if worse else 0


def _most_alike(found: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Of the committed runs, that of the machine whose instructions differ least from a run's, and where it lies."""

    def difference(path: Path) -> tuple[int, str]:
        return len(set(read_json(path)["features"]) ^ set(found.get("features", ()))), path.name

    path = min(COMMITTED.glob("*.json"), key=difference)
    return path.relative_to(ROOT), read_json(path)


if __name__ == "__main__":
    run(command, "bench")
