"""Fuzzing of everything that reads strangers' files.

python tools/fuzz.py --seconds 60                          every target in turn, by mutation of tests/data/fuzz
python tools/fuzz.py --guided --target onnx --seconds 600  one target guided by coverage; needs `pip install atheris`
python tools/fuzz.py --make-corpus                         write the seeds of tests/data/fuzz anew

A finding is an error that is not a deliberate one, or one whose line is too long. Ends with 1 if there is one.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from fuzzing.corpus import make_corpus
from fuzzing.guided import fuzz_guided
from fuzzing.plain import fuzz
from fuzzing.targets import TARGETS
from toolbox import COMMAND, read_json, write_json

from odm_deploy.terminal import run


@click.command(context_settings=COMMAND)
@click.option("--target", "targets", multiple=True, type=click.Choice(list(TARGETS)), default=tuple(TARGETS))
@click.option("--seconds", default=10, show_default=True, help="For each target.")
@click.option("--guided", is_flag=True, help="With atheris.")
@click.option("--found", type=click.Path(path_type=Path), default=Path("fuzz"), help="Folder for what breaks a reader.")
@click.option("--seed", type=int, help="Of what is drawn at random; the time where none is given.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file that executions are added to.")
@click.option("--make-corpus", "making", is_flag=True, help="Write tests/data/fuzz anew, and end.")
def command(
    targets: tuple[str, ...], seconds: int, guided: bool, found: Path, seed: int | None, out: Path | None, making: bool
) -> None:
    """Fuzz every target, or those named."""
    if making:
        make_corpus()
        return
    if guided and len(targets) == 1:
        fuzz_guided(targets[0], seconds, found / targets[0])
    kept: dict[str, Any] = read_json(out) if out is not None and out.exists() else {}
    failed = False
    for target in targets:
        if guided:
            # libFuzzer ends the process it runs in.
            again = [sys.executable, __file__, "--guided", "--target", target, "--seconds", str(seconds)]
            failed |= subprocess.run([*again, "--found", str(found)], check=False).returncode != 0
            continue
        findings = fuzz(target, int(time.time()) if seed is None else seed, seconds=seconds)
        kept[target] = kept.get(target, 0) + findings.executions
        click.echo(f"{target}: {findings.executions} inputs, slowest {findings.slowest_s:.2f} s")
        for place, data in findings.by_place.items():
            path = found / target / hashlib.sha256(data).hexdigest()[:16]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            click.echo(f"  {place}: {path}")
            failed = True
        if out is not None:
            write_json(out, kept)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run(command, "fuzz.py")
