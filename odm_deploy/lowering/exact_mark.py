"""The mark of an exact model in its ONNX file, so that runtimes keep their float additions in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_KEY = "odm.exact"


def mark_exact(metadata: dict[str, str]) -> None:
    """Say in a model's metadata that its arithmetic never rounds in float32."""
    metadata[_KEY] = "float32"


def is_marked_exact(model: onnx.ModelProto) -> bool:
    """Whether this program wrote the file from a model that is proven exact."""
    return any(entry.key == _KEY for entry in model.metadata_props)
