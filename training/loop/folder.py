"""A run's folder belongs to one recipe: it can be resumed, and not be taken over by other settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from odm_deploy.errors import UsageError
from odm_deploy.files import atomic_path
from training.config import to_tables
from training.recipe import Recipe

# Settings a resumed run may change, because they do not change what is computed.
_FREE_SETTINGS = {
    ("run", "checkpoint_every"),
    ("run", "log_every"),
    ("run", "device"),
    ("run", "cuda_graphs"),
    ("method", "remove_gates"),
}


def claim_folder(folder: Path, recipe: Recipe) -> None:
    """Write the resolved recipe into the run's folder, or check that it is the one already there.

    Raises:
        UsageError: the folder belongs to a run with other settings; the line names them.
        InputError: the folder cannot be written to.
    """
    tables, path = to_tables(recipe), folder / "config.json"
    if (folder / "last.pt").exists() and path.exists():
        changed = _differences(json.loads(path.read_text(encoding="utf-8")), tables)
        if changed:
            raise UsageError(
                f"{folder} belongs to another run", why="; ".join(changed[:4]), fix="choose another --out, or remove it"
            )
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two resolved recipes disagree on. Settings that the older one does not know had their default value."""
    defaults = to_tables(Recipe())
    before = {
        section: {**(defaults.get(section, {}) if section != "method" else {}), **before.get(section, {})}
        for section in defaults
    }
    free = set(_FREE_SETTINGS)
    if now["optimizer"]["schedule"] != "cosine":
        # Only a cosine depends on where the run ends.
        free.add(("run", "iterations"))
    return [
        f"{section}.{key} was {before.get(section, {}).get(key)!r}, now {now.get(section, {}).get(key)!r}"
        for section in sorted(before.keys() | now.keys())
        for key in sorted(before.get(section, {}).keys() | now.get(section, {}).keys())
        if (section, key) not in free and before.get(section, {}).get(key) != now.get(section, {}).get(key)
    ]
