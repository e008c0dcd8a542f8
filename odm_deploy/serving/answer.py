"""Encoded images in, PNG out: what the HTTP server does with the bytes it gets, without any HTTP.

Whoever sends them is not trusted: sizes are read from the header before anything is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from odm_deploy.imaging.image import Image
from odm_deploy.imaging.pixels import to_eight_bits
from odm_deploy.imaging.reading import read_image
from odm_deploy.imaging.resize import imresize
from odm_deploy.imaging.writing import encode_png


def answer(data: bytes, enlarge: Callable[[Image], Image], max_pixels: int) -> tuple[bytes, dict[str, float]]:
    """Enlarge an encoded image; transparency, colour profile and 16 bits a sample are kept.

    Args:
        data: a file of any format that `read_image` takes.
        enlarge: does the work, such as `Engine.upscale`.
        max_pixels: of the largest image taken, width times height.

    Returns:
        A PNG, and milliseconds taken by `decode`, `upscale` and `encode`.

    Raises:
        TooLargeError: more pixels than allowed.
        InputError: no image, a damaged one, an animation, or a size the engine was not built for.
    """
    timings_ms: dict[str, float] = {}
    start = time.perf_counter()

    def lap(part: str) -> None:
        timings_ms[part] = 1e3 * (time.perf_counter() - start) - sum(timings_ms.values())

    image = read_image(data, max_pixels=max_pixels, max_bits=16)
    lap("decode")
    enlarged = enlarge(image)
    lap("upscale")
    png = encode_png(enlarged)
    lap("encode")
    return png, timings_ms


def interpolate(image: Image, scale: int) -> Image:
    """An image enlarged by bicubic interpolation, 8 bits a sample: what a network is compared with."""
    alpha = None if image.alpha is None else imresize(to_eight_bits(image.alpha), scale)
    return Image(imresize(to_eight_bits(image.rgb), scale), alpha, image.gray, image.icc_profile)
