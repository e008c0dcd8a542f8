"""`manifest.json`: everything a bundle knows about itself. A plan carries no metadata, so this file carries it all.

`docs/formats.md` lists the keys. Everything but `engine` describes the model; `engine` describes the one file that
depends on the machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from odm_deploy.documents import read_json, taken_from
from odm_deploy.errors import InputError
from odm_deploy.files import write_text
from odm_deploy.networks.titles import network_title

_OPTIONAL = ("exact", "engine", "cpu_onnx", "signals")
FORMAT = "odm-deploy bundle"
VERSION = 1

MANIFEST_FILE = "manifest.json"
ONNX_FILE = "model.onnx"
CPU_ONNX_FILE = "model.cpu.onnx"
"""The same model as OpenVINO and ONNX Runtime on CPUs run it fastest."""
PLAN_FILE = "engine.plan"
GOLDEN_FILE = "golden.json"
"""Of exact models: what they compute on fixed images (`proof.golden`)."""


@dataclass(frozen=True)
class Manifest:
    """A bundle's side-car; `docs/formats.md` explains every key."""

    network: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    onnx: Mapping[str, Any]
    receptive_radius_px: int | None
    layers: Mapping[str, Any]
    exact: Mapping[str, Any] | None = None
    engine: Mapping[str, Any] | None = None
    cpu_onnx: Mapping[str, Any] | None = None
    signals: Mapping[str, Any] | None = None
    created_by: str = ""
    format: str = FORMAT
    version: int = VERSION
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Keys that this version does not know; kept, so that rewriting loses nothing."""

    @property
    def scale(self) -> int:
        """Output pixels per input pixel along each axis."""
        return int(self.network["scale"])

    @property
    def network_title(self) -> str:
        """What people call the network."""
        config = self.network.get("config")
        return network_title(str(self.network["name"]), config if isinstance(config, Mapping) else {})

    def bits_of(self, layer: str) -> tuple[int, int] | None:
        """Bits of a layer's weights and of its input's codes; None for a layer that stays in float."""
        stated = self.layers.get(layer)
        return None if stated is None else (stated["weight_bits"], stated["grid"]["bits"])

    def write(self, folder: Path) -> Path:
        """Write `manifest.json` into `folder`, whole or not at all; returns its path."""
        document = asdict(self)
        for key in ("cpu_onnx", "signals"):
            if not document[key]:
                del document[key]
        extra = document.pop("extra")
        first = {key: document.pop(key) for key in ("format", "version", "created_by")}
        path = folder / MANIFEST_FILE
        write_text(path, json.dumps(first | document | extra, indent=1) + "\n")
        return path


def read_manifest(bundle: Path | str) -> Manifest:
    """The manifest of a bundle directory.

    Raises:
        InputError: no bundle, a damaged manifest, or one of a newer version.
    """
    path = Path(bundle) / MANIFEST_FILE
    if not path.is_file():
        make = "make one with: odm-deploy export model.pt -o DIR"
        why = f"it has no {MANIFEST_FILE}" if Path(bundle).is_dir() else "there is no such directory"
        if Path(bundle).is_file():
            why = f"it is a file, and a folder with a {MANIFEST_FILE} is wanted"
            make += ", or from a float network with: odm-deploy quantize FILE --images DIR --export DIR"
        raise InputError(f"{bundle} is not a bundle", why=why, fix=make)
    document: Any = read_json(path)
    with taken_from(path):
        if document["format"] != FORMAT:
            raise KeyError("format")
        if document["version"] != VERSION:
            raise InputError(
                f"cannot read {path}", why=f"its version is {document['version']!r}, this program reads {VERSION}"
            )
        known = {name: document.pop(name) for name in Manifest.__dataclass_fields__ if name in document}
        manifest = Manifest(**known, extra=document)
        _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    """Raise KeyError, TypeError or ValueError, naming the key, where what the program reads is of another kind."""
    for name in ("network", "checkpoint", "onnx", "layers", *_OPTIONAL):
        value = getattr(manifest, name)
        if not isinstance(value, dict) and not (name in _OPTIONAL and value is None):
            raise TypeError(f"{name} is {value!r}")
    int(manifest.network["scale"])
    for name in ("path", "sha256"):
        if not isinstance(manifest.checkpoint.get(name, ""), str):
            raise TypeError(f"checkpoint.{name} is {manifest.checkpoint[name]!r}")
    for row in manifest.engine.get("layers", ()) if manifest.engine else ():
        if not all(isinstance(row[name], str) for name in ("name", "kind", "precision")):
            raise TypeError(f"engine.layers holds {row!r}")
        if not all(isinstance(node, str) for node in row["onnx_nodes"]):
            raise TypeError(f"engine.layers holds {row!r}")
    takers: Any = (manifest.cpu_onnx or {}).get("runtimes", [])
    if not isinstance(takers, list) or not all(isinstance(each, str) for each in takers):
        raise TypeError(f"cpu_onnx.runtimes is {takers!r}")
    radius: Any = manifest.receptive_radius_px
    if radius is not None and (not isinstance(radius, int) or radius < 0):
        raise TypeError(f"receptive_radius_px is {radius!r}")
    for layer in manifest.layers:
        bits: Any = manifest.bits_of(layer)
        if not all(isinstance(width, int) for width in bits):
            raise TypeError(f"layers: the bits of {layer} are no numbers")
