"""What a lowered graph says of itself, in the metadata of its ONNX file: where its quantizers sit, and if it is exact.

By its *taps* a graph on its own can be checked layer by layer. By the mark of an exact model, runtimes keep their float
additions in float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from odm_deploy.errors import InputError

if TYPE_CHECKING:
    import onnx

_TAPS = "odm.taps"
_EXACT = "odm.exact"
_NEWER: dict[str, object] = {"block": 1, "by_pixel": 1, "same_as": "", "joined": {}}


@dataclass(frozen=True)
class Tap:
    """One activation quantizer of a lowered graph."""

    layer: str
    """Dotted name of the layer whose input is quantized; behind a colon the number of the run, from the second on."""
    source: str
    """Name of the float tensor that enters the quantizer."""
    codes: str
    """Name of the integer tensor the quantizer produces."""
    code_offset: int
    """What to add to those integers to get the grid's codes 0 .. 2^bits - 1."""
    zero_code: int
    """The grid's code of a padded zero."""
    padding: tuple[int, int] = (0, 0)
    """Border that the quantizer adds around the source: pixels above and below, and at both sides."""
    block: int = 1
    """Block size of a pixel shuffle that the quantizer stands in front of, and the model behind: source and codes are
    still to be shuffled (DepthToSpace, CRD)."""
    by_pixel: int = 1
    """Block size of a pixel shuffle for which channels of source and codes are in DepthToSpace's order DCR, pixel by
    pixel of a block; those of the model are in order CRD."""
    same_as: str = ""
    """The tap whose source and codes these are, where one quantizer stands for several of the model; or the first of
    those whose codes are joined here. Else empty."""
    joined: Mapping[str, bool] = field(default_factory=dict[str, bool])
    """Of codes that are others side by side: the names of those codes, and whether they are rectified on their way."""


def run_name(layer: str, run: int) -> str:
    """What the run of a layer goes by; `run` counts from 0. Layers that run once go by their own name."""
    return f"{layer}:{run}" if run else layer


def layer_of_run(name: str) -> str:
    """The dotted name of the layer that `run_name` made a name for."""
    return name.partition(":")[0]


def write_taps(metadata: dict[str, str], taps: Iterable[Tap]) -> None:
    """Put the taps into a model's metadata, as one JSON value."""
    metadata[_TAPS] = json.dumps([_plain(tap) for tap in taps])


def _plain(tap: Tap) -> dict[str, object]:
    """A tap's keys; those of newer versions only where they say something, and a padding that is even as one number."""
    rows, columns = tap.padding
    plain = asdict(tap) | {"padding": rows if rows == columns else [rows, columns]}
    return {key: value for key, value in plain.items() if key not in _NEWER or value != _NEWER[key]}


def _tap(plain: Any) -> Tap:
    """What `_plain` made keys of. Raises TypeError where a value is of another kind than its field's."""
    padding = plain.get("padding", 0)
    values: dict[str, Any] = {
        **plain,
        "padding": tuple(padding) if isinstance(padding, list) else (padding, padding),
    }
    return _checked(Tap(**values))


def change_taps(metadata: dict[str, str], change: Callable[[Tap], Tap]) -> list[Tap]:
    """Follow a pass that changed what taps say; returns them."""
    if _TAPS not in metadata:
        return []
    taps = [change(_tap(plain)) for plain in json.loads(metadata[_TAPS])]
    write_taps(metadata, taps)
    return taps


def rename_source(metadata: dict[str, str], old: str, new: str) -> None:
    """Follow a pass that gave a source tensor another name."""
    change_taps(metadata, lambda tap: replace(tap, source=new) if tap.source == old else tap)


def read_taps(model: onnx.ModelProto) -> list[Tap]:
    """The taps of a lowered model, in network order; empty for a graph that this program did not lower.

    Raises:
        InputError: metadata that cannot be understood.
    """
    for entry in model.metadata_props:
        if entry.key == _TAPS:
            try:
                return [_tap(plain) for plain in json.loads(entry.value)]
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError("the model's metadata is damaged", why=f"{_TAPS}: {error}") from None
    return []


def _checked(tap: Tap) -> Tap:
    """`tap` itself. Raises TypeError where a value is of another kind than its field's."""
    for name in ("layer", "source", "codes", "same_as"):
        if not isinstance(getattr(tap, name), str):
            raise TypeError(f"{name} is {getattr(tap, name)!r:.100}")
    for name, least in (("code_offset", None), ("zero_code", None), ("block", 1), ("by_pixel", 1)):
        value = getattr(tap, name)
        if not isinstance(value, int) or (least is not None and value < least):
            raise TypeError(f"{name} is {value!r:.100}")
    sides: tuple[Any, ...] = tap.padding
    if len(sides) != 2 or not all(isinstance(each, int) and each >= 0 for each in sides):
        raise TypeError(f"padding is {tap.padding!r:.100}")
    return tap


def mark_exact(metadata: dict[str, str]) -> None:
    """Say in a model's metadata that its arithmetic never rounds in float32."""
    metadata[_EXACT] = "float32"


def is_marked_exact(model: onnx.ModelProto) -> bool:
    """Whether this program wrote the file from a model that is proven exact."""
    return any(entry.key == _EXACT for entry in model.metadata_props)
