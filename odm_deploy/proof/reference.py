"""The model.pt that a bundle is held against."""

from __future__ import annotations

from pathlib import Path

from odm_deploy.bundle import Bundle
from odm_deploy.checkpoint import file_sha256, load_model
from odm_deploy.errors import InputError, UsageError
from odm_deploy.quantization.model import QuantizedModel


def reference_of(bundle: Bundle, against: Path | None = None) -> QuantizedModel:
    """The model.pt that was named, or the bundle's own if it still is what it was.

    Raises:
        InputError: it is missing, damaged, or not what the bundle was made from.
        UsageError: none was named, and there is no bundle to name one; or its network is foreign and not trusted.
    """
    manifest = bundle.manifest
    if against is None:
        if manifest is None:
            raise UsageError("nothing to verify against", why=f"{bundle} is no bundle", fix="add --against model.pt")
        against = Path(manifest.checkpoint["path"])
    model = load_model(against)
    if manifest is not None and file_sha256(against) != manifest.checkpoint["sha256"]:
        raise InputError(
            f"{against} is not what {bundle} was made from",
            why="its SHA-256 differs from the one in the manifest",
            fix=f"export again: odm-deploy export {against} -o {bundle}",
        )
    return model
