"""Taps: where each layer's quantizer sits in a lowered graph, so that `verify` can watch it there.

They travel inside the ONNX file (model metadata, one JSON value): a graph on its own can then be checked layer by
layer, whichever dialect it is in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import onnx

from odm_deploy.errors import InputError

_KEY = "odm.taps"


@dataclass(frozen=True)
class Tap:
    """One activation quantizer of a lowered graph."""

    layer: str
    """Dotted name of the layer whose input is quantized."""
    source: str
    """Name of the float tensor that enters the quantizer."""
    codes: str
    """Name of the integer tensor the quantizer produces."""
    code_offset: int
    """What to add to those integers to get the grid's codes 0 .. 2^bits - 1."""
    zero_code: int
    """The grid's code of a padded zero."""
    padding: int = 0
    """Border, in pixels on each side, that the quantizer adds around the source."""


def write_taps(metadata: dict[str, str], taps: Iterable[Tap]) -> None:
    """Put the taps into a model's metadata."""
    metadata[_KEY] = json.dumps([asdict(tap) for tap in taps])


def rename_source(metadata: dict[str, str], old: str, new: str) -> None:
    """Follow a pass that gave a source tensor another name."""
    if _KEY in metadata:
        taps = [Tap(**plain) for plain in json.loads(metadata[_KEY])]
        write_taps(metadata, [replace(tap, source=new) if tap.source == old else tap for tap in taps])


def read_taps(model: onnx.ModelProto) -> list[Tap]:
    """The taps of a lowered model, in network order; empty for a graph that this program did not lower.

    Raises:
        InputError: metadata that cannot be understood.
    """
    for entry in model.metadata_props:
        if entry.key == _KEY:
            try:
                return [Tap(**plain) for plain in json.loads(entry.value)]
            except (ValueError, TypeError) as error:
                raise InputError("the model's metadata is damaged", why=f"{_KEY}: {error}") from None
    return []
