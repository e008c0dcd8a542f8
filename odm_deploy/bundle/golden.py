"""`golden.json`: what an exact model computes on fixed images, as hashes (`docs/formats.md` lists the keys).

Not every wrong number shows on every image, so each layer's part of the graph is hashed, too.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odm_deploy.bundle.manifest import GOLDEN_FILE
from odm_deploy.documents import read_json, taken_from
from odm_deploy.errors import InputError

VERSION = 2
HEIGHT_PX, WIDTH_PX = 24, 32
"""Of the golden images: within every engine's default shapes, and enough to fill the grids of every layer."""


@dataclass(frozen=True)
class GoldenImage:
    """Hashes of one image's way through the network; `docs/formats.md` explains them."""

    name: str
    shape: list[int]
    input: str
    output: str
    codes: dict[str, str]

    def __post_init__(self) -> None:
        texts: list[Any] = [self.name, self.input, self.output, *(text for pair in self.codes.items() for text in pair)]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a name or a hash of an image is no text")


@dataclass(frozen=True)
class Golden:
    """The contents of `golden.json`."""

    graph: dict[str, str]
    images: list[GoldenImage]
    version: int = VERSION
    cpu_graph: dict[str, str] | None = None
    """As `graph`, of the bundle's `model.cpu.onnx`; None where it has none."""

    def write(self, folder: Path) -> None:
        """Write `golden.json` into a bundle."""
        document = {key: value for key, value in asdict(self).items() if value is not None}
        (folder / GOLDEN_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def golden_images() -> dict[str, NDArray[np.uint8]]:
    """The images, uint8 [1, 3, H, W] by name; made by integer arithmetic alone, the same everywhere and forever."""
    y, x = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
    colour = np.arange(3).reshape(3, 1, 1)
    position = (colour * HEIGHT_PX + y) * WIDTH_PX + x
    # Knuth's multiplicative hash: its upper bits have no pattern.
    noise = (position * 2654435761 % 2**32) >> 16
    pictures = {
        "noise": noise % 256,
        "black and white": noise // 256 % 2 * 255,
        "ramps": (y * (5 + colour) + x * (7 - 2 * colour)) % 256,
    }
    return {name: picture.astype(np.uint8)[None] for name, picture in pictures.items()}


def read_golden(bundle: Path) -> Golden | None:
    """The record in a bundle directory; None where there is none.

    Raises:
        InputError: a damaged record, one of a newer version, or of other images than this program makes.
    """
    path = bundle / GOLDEN_FILE
    if not path.is_file():
        return None
    document: Any = read_json(path)
    with taken_from(path):
        if document["version"] != VERSION:
            raise InputError(
                f"cannot read {path}",
                why=f"its version is {document['version']!r}, this program reads {VERSION}",
                fix="export again",
            )
        graph: Any = document["graph"]
        cpu_graph: Any = document.get("cpu_graph")
        for hashes in (graph, cpu_graph or {}):
            if not all(isinstance(text, str) for pair in hashes.items() for text in pair):
                raise TypeError(f"graph is {hashes!r}")
        golden = Golden(graph, [GoldenImage(**plain) for plain in document["images"]], cpu_graph=cpu_graph)
        inputs = {image.name: image.input for image in golden.images}
    if inputs != {name: hash_of(image) for name, image in golden_images().items()}:
        raise InputError(f"{path} is damaged", why="its images are not those this program makes", fix="export again")
    return golden


def hash_of(array: NDArray[Any]) -> str:
    """SHA-256 of an array's shape and bytes."""
    return hashlib.sha256(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
