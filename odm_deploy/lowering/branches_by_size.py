"""Sizes of images at which a network's code decides otherwise than it did while it was traced.

The tracer writes down each decision by a size as a guard, such as `height <= 100`, and follows the example's side of it
for all images. Code that splits large images, or averages over windows only where the image is larger than one, is
another function there. No handful of sizes would meet all of that, but the guards say where to look.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

Size = tuple[int, int]

_SIDES_PX = (8, 16, 24, 32, 48, 64, 72, 96, 104, 128, 136, 160, 192, 200, 224, 256, 264, 320, 392, 512, 520, 776, 1024)
"""On both sides of what code decides by: windows, training sizes, and a little more."""
_MOST_PIXELS = 520 * 520
"""Of an image that a network still takes in seconds."""
_MULTIPLES = (1, 32, 64)
"""For each decision, the smallest size of such sides each: code may run at no others."""
_NAMES: dict[str, Any] = {**SYMPY_INTERP, "inf": float("inf")}
"""What guards call."""


def sizes_decided_otherwise(program: torch.export.ExportedProgram, seen: Sequence[Size]) -> Iterator[list[Size]]:
    """Per decision that the `seen` sizes (height, width) leave as the example made it, the smallest that change it.

    What has been `seen` is looked at when the first is asked for, and what of it is added meanwhile for each decision.
    """
    pairs = [(height, width) for height in _SIDES_PX for width in _SIDES_PX if height * width <= _MOST_PIXELS]
    pairs.sort(key=lambda size: (size[0] * size[1], size))
    # Where another version of torch keeps none, what is left are the sizes that are always looked at.
    guards = dict.fromkeys(getattr(program, "_guards_code", ()))
    name = str(next(iter(program.graph_signature.user_inputs)))
    images = {size: {name: torch.empty((1, 3, *size), device="meta")} for size in (*pairs, *seen)} if guards else {}
    for guard in guards:
        code = compile(guard, "<guard>", "eval")
        if all(_holds(code, images[size]) for size in seen):
            changing = [size for size in pairs if not _holds(code, images[size])]
            smallest = [
                next((size for size in changing if not any(side % by for side in size)), None) for by in _MULTIPLES
            ]
            if found := [size for size in dict.fromkeys(smallest) if size is not None]:
                yield found


def _holds(guard: CodeType, inputs: dict[str, Tensor]) -> bool:
    """Whether a guard, code of the tracer's on the network's inputs `L[..]`, is true; what is unknown is."""
    try:
        return bool(eval(guard, _NAMES, {"L": inputs}))
    except (ArithmeticError, LookupError, NameError, TypeError, ValueError):
        return True
