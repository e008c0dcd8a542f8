"""What an installation consists of: a licence list and a software bill of materials (CycloneDX 1.5).

python tools/sbom.py --out DIR    writes DIR/licences.md and DIR/sbom.json about the packages of this environment

Both come from the metadata of the installed packages that odm-deploy and its extras need, and of theirs in turn.
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import click
from toolbox import COMMAND, markdown_table, write_json

from odm_deploy.files import write_text
from odm_deploy.terminal import run
from odm_deploy.version import __version__

OWN = "odm-deploy"


@click.command(context_settings=COMMAND)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the two files.")
def command(out: Path) -> None:
    """Write both files."""
    packages = needed(OWN)
    rows = [(name, found.version, licence_of(found)) for name, found in sorted(packages.items())]
    write_text(out / "licences.md", markdown_table(("package", "version", "licence"), rows))
    write_json(out / "sbom.json", bill_of(packages))
    click.echo(f"wrote {out / 'licences.md'} and {out / 'sbom.json'}: {len(packages)} packages")


def needed(root: str) -> dict[str, Distribution]:
    """Installed packages that `root` needs with any of its extras, directly or through others, by canonical name."""
    found: dict[str, Distribution] = {}
    waiting = list(distribution(root).requires or ())
    while waiting:
        name = canonical(re.split(r"[\s;<>=!~\[(]", waiting.pop(), maxsplit=1)[0])
        if name in found or name == root:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # of an extra, a platform or a version of Python that is not this one
        # Extras of others are theirs: what they need without.
        waiting += [each for each in found[name].requires or () if "extra ==" not in each]
    return found


def canonical(name: str) -> str:
    """A package's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(package: Distribution) -> str:
    """The licence that a package's metadata states, in a line."""
    metadata: Any = package.metadata
    stated = metadata.get("License-Expression") or metadata.get("License") or ""
    classified = [each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier") or () if "License ::" in each]
    line = stated.strip().splitlines()[0] if stated.strip() else ""
    # Some packages put the whole text of their licence there.
    return line if line and len(line) < 80 else ", ".join(classified) or line[:80] or "not stated"


def bill_of(packages: dict[str, Distribution]) -> dict[str, Any]:
    """The CycloneDX document."""
    components = [
        {
            "type": "library",
            "name": name,
            "version": found.version,
            "purl": f"pkg:pypi/{name}@{found.version}",
            "licenses": [{"license": {"name": licence_of(found)}}],
        }
        for name, found in sorted(packages.items())
    ]
    about = {"type": "application", "name": OWN, "version": __version__, "purl": f"pkg:pypi/{OWN}@{__version__}"}
    head = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": about}}
    return {**head, "components": components}


if __name__ == "__main__":
    run(command, "sbom.py")
