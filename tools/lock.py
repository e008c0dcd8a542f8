"""Hashed requirements for CI: every package of the tests' environment, pinned, with the hash of the file it comes from.

python tools/lock.py --out requirements-ci.txt    resolves .[dev] with constraints.txt, as pip does on this machine

constraints.txt stays the source: change it, then run this. What comes out holds for this version of Python and this
platform, and for PyTorch's CPU build; `pip install --require-hashes --no-deps -r` installs it, and nothing else.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from sbom import canonical
from toolbox import COMMAND, ROOT

from odm_deploy.errors import InputError
from odm_deploy.files import write_text
from odm_deploy.terminal import run

BUILD = ("hatchling", "hatch-fancy-pypi-readme", "editables")
"""What installing this project from its folder takes, besides pip."""
OWN = "odm-deploy"
CONSTRAINTS = ROOT / "constraints.txt"


@click.command(context_settings=COMMAND)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write.")
def command(out: Path) -> None:
    """Resolve and write."""
    packages = resolved()
    write_text(out, to_requirements(packages))
    click.echo(f"wrote {out}: {len(packages)} packages")


def resolved() -> dict[str, tuple[str, str]]:
    """Every package that the tests' environment would consist of, but for this one: version and SHA-256 by name.

    Raises:
        InputError: pip cannot resolve it, or a package comes without a hash.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        words = [*pip, "--report", str(report), "-c", str(CONSTRAINTS), f"{ROOT}[dev]", *BUILD]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError("pip does not resolve this project", why=done.stderr.strip()[-500:])
        document = json.loads(report.read_text())
    return hashes_of(document)


def hashes_of(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """From pip's installation report: version without its build, and SHA-256, by canonical name.

    Raises:
        InputError: a package comes without a hash.
    """
    found: dict[str, tuple[str, str]] = {}
    for each in report["install"]:
        name, version = canonical(each["metadata"]["name"]), each["metadata"]["version"]
        if name == OWN:
            continue
        digest = each["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            raise InputError(f"{name} {version} comes without a hash", why=str(each["download_info"])[:200])
        found[name] = version, digest
    return found


def to_requirements(packages: dict[str, tuple[str, str]]) -> str:
    """The text of a requirements file that pip takes with --require-hashes."""
    version = ".".join(platform.python_version_tuple()[:2])
    head = (
        f"# CPython {version}, {platform.system()} {platform.machine()}, PyTorch's CPU build: the environment of CI.\n"
        "# Made from constraints.txt by: python tools/lock.py --out requirements-ci.txt\n"
        "# Installed by: pip install --require-hashes --no-deps -r requirements-ci.txt\n"
    )
    return head + "".join(
        f"{name}=={version} \\\n    --hash=sha256:{digest}\n" for name, (version, digest) in sorted(packages.items())
    )


def pins_in(text: str) -> dict[str, str]:
    """Versions by canonical name in a file of constraints or requirements."""
    pairs = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", text, flags=re.MULTILINE)
    return {canonical(name): version for name, version in pairs}


if __name__ == "__main__":
    run(command, "lock.py")
