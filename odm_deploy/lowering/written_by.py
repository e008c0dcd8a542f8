"""Who writes a graph: the same model comes out as the same graph where these are the same."""

from __future__ import annotations

import functools
import hashlib
from importlib import metadata
from pathlib import Path

from odm_deploy.networks.foreign import ForeignConfig
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.version import __version__

_WRITERS = ("torch", "onnxscript", "onnx-ir", "onnx")
_SOURCES = ("lowering", "networks", "quantization", "graphs")


def written_by(model: QuantizedModel) -> str:
    """This program and the packages that decide what the graph of `model` looks like, with their versions."""
    names = [*_WRITERS]
    if isinstance(model.network.config, ForeignConfig) and model.network.config.builder:
        names.append(model.network.config.builder.partition(":")[0].partition(".")[0])
    return ", ".join([f"odm-deploy {__version__} ({_digest()})", *map(_versioned, names)])


@functools.cache
def _digest() -> str:
    """Of the sources that decide what a graph looks like: in a clone, they change between versions."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for folder in _SOURCES:
        for source in sorted((package / folder).rglob("*.py")):
            digest.update(source.relative_to(package).as_posix().encode() + source.read_bytes())
    return digest.hexdigest()[:12]


def _versioned(package: str) -> str:
    """Name and version of a package; a builder's module may belong to none."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package
