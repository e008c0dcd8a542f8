"""For which image sizes an engine is built, and which of them it is tuned for (TensorRT's optimization profile)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from odm_deploy.errors import BuildError, UsageError

Shape = tuple[int, int, int, int]

SMALLEST_SIDE_PX = 16
"""Smallest input height and width of the named shapes; benchmark images and thumbnails are rarely smaller."""

RGB_CHANNELS = 3


@dataclass(frozen=True)
class InputShapes:
    """The range of input shapes [N, C, H, W] an engine accepts, and the one it is tuned for.

    Sizes are those of the *input*, before upscaling.

    Raises:
        UsageError: a size is not positive, or min <= opt <= max does not hold on every axis.
    """

    min: Shape
    """Smallest accepted shape."""
    opt: Shape
    """The shape whose speed matters; kernels are chosen for it."""
    max: Shape
    """Largest accepted shape; it decides how much GPU memory the engine needs."""

    def __post_init__(self) -> None:
        for low, best, high in zip(self.min, self.opt, self.max, strict=True):
            if not 1 <= low <= best <= high:
                raise UsageError("no such input shapes", why=str(self), fix="keep 1 <= min <= opt <= max on every axis")

    def __str__(self) -> str:
        return ":".join("x".join(map(str, shape)) for shape in (self.min, self.opt, self.max))

    @classmethod
    def static(cls, n: int, h: int, w: int, channels: int = RGB_CHANNELS) -> InputShapes:
        """Exactly one shape; the fastest engine for a fixed video size."""
        shape = (n, channels, h, w)
        return cls(shape, shape, shape)

    @classmethod
    def up_to(cls, h: int, w: int, n: int = 1) -> InputShapes:
        """Tuned for h x w, and everything smaller is taken, too."""
        smallest = (1, RGB_CHANNELS, min(SMALLEST_SIDE_PX, h), min(SMALLEST_SIDE_PX, w))
        return cls(smallest, (1, RGB_CHANNELS, h, w), (n, RGB_CHANNELS, h, w))

    def enlarged(self, divisor: int) -> InputShapes:
        """The next shapes whose heights and widths are multiples of a number."""
        enlarged = ((n, c, -(-h // divisor) * divisor, -(-w // divisor) * divisor) for n, c, h, w in astuple(self))
        return InputShapes(*enlarged)

    def for_input(self, dims: Sequence[int], name: str = "input") -> tuple[tuple[int, ...], ...]:
        """Fit the shapes to one graph input.

        Args:
            dims: the input's declared dimensions, -1 where dynamic: NCHW, or NHWC when the last one is 3 and the
                second is dynamic or not 3 (graphs with uint8 images at their edge).
            name: the input's name, for the error.

        Returns:
            min, opt and max in the input's own layout. Fixed dimensions of the graph win over these.

        Raises:
            BuildError: the input is of dynamic size, and not a batch of images.
        """
        if min(dims, default=0) >= 0:
            return (tuple(dims),) * 3
        if len(dims) != 4:
            raise BuildError(
                f"cannot choose shapes for the graph input {name!r}",
                why=f"it has {len(dims)} dimensions {tuple(dims)}, not the 4 of a batch of images",
                fix="export the graph with one [N, C, H, W] input",
            )
        channels_last = dims[3] == RGB_CHANNELS and dims[1] != RGB_CHANNELS
        order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
        return tuple(
            tuple(shape[axis] if dim < 0 else dim for axis, dim in zip(order, dims, strict=True))
            for shape in (self.min, self.opt, self.max)
        )


PRESETS: dict[str, InputShapes] = {
    "540p": InputShapes.up_to(540, 960),
    "720p": InputShapes.up_to(720, 1280),
    "1080p": InputShapes.up_to(1080, 1920),
    # Tiles come in batches and edge tiles are smaller.
    "tile": InputShapes((1, 3, 16, 16), (4, 3, 256, 256), (8, 3, 512, 512)),
}
"""Named shapes: video frames of that size as input, or batches of square tiles."""


def parse_shapes(text: str) -> InputShapes:
    """Read input shapes as users write them: a preset's name, one shape, or min:opt:max.

    >>> str(parse_shapes("1x3x540x960"))
    '1x3x540x960:1x3x540x960:1x3x540x960'

    Raises:
        UsageError: it is none of these.
    """
    if text in PRESETS:
        return PRESETS[text]
    parts = [re.fullmatch(r"(\d{1,6})x(\d{1,6})x(\d{1,6})x(\d{1,6})", part.strip()) for part in text.split(":")]
    shapes = [(int(part[1]), int(part[2]), int(part[3]), int(part[4])) for part in parts if part is not None]
    if len(parts) not in (1, 3) or len(shapes) != len(parts):
        fix = f"use one of {', '.join(PRESETS)}, a shape like 1x3x540x960, or min:opt:max of three such shapes"
        raise UsageError("cannot read the input shapes", why=repr(text), fix=fix)
    return InputShapes(*(shapes if len(shapes) == 3 else 3 * shapes))
