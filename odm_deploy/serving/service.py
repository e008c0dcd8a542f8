"""Encoded images in, PNG out: what the HTTP server does with the bytes it gets, without any HTTP.

Whoever sends them is not trusted: sizes are read from the header before anything is decoded, and errors never name
files of this machine.
"""

from __future__ import annotations

import io
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PillowImage

from odm_deploy.errors import InputError
from odm_deploy.imaging.io import READERS, Image, read_image, write_image
from odm_deploy.imaging.pixels import to_eight_bits
from odm_deploy.imaging.resize import imresize
from odm_deploy.upscaling.upscaler import Upscaler


class TooLargeError(InputError):
    """An image of more pixels, or a body of more bytes, than the server takes."""


@dataclass(frozen=True)
class Answer:
    """An upscaled image, and where the time went."""

    png: bytes
    timings_ms: dict[str, float]
    """decode, upscale, encode."""


class UpscaleService:
    """Answers one image after the other.

    Args:
        upscaler: an open bundle.
        max_pixels: of the largest image taken, width times height.
    """

    def __init__(self, upscaler: Upscaler, max_pixels: int) -> None:
        self._upscaler = upscaler
        self._max_pixels = max_pixels

    @property
    def scale(self) -> int:
        """Output pixels per input pixel along each axis."""
        return self._upscaler.scale

    def upscale(self, data: bytes) -> Answer:
        """Upscale an encoded image by the network; transparency and colour profile are kept.

        Raises:
            TooLargeError: more pixels than allowed.
            InputError: no image, a damaged one, an animation, or a size the engine was not built for.
        """
        return self._answer(data, self._upscaler.upscale)

    def bicubic(self, data: bytes) -> Answer:
        """The same by bicubic interpolation, to compare with. Raises as `upscale`."""
        return self._answer(data, self._interpolated)

    def _interpolated(self, image: Image) -> Image:
        alpha = None if image.alpha is None else imresize(to_eight_bits(image.alpha), self.scale)
        return Image(imresize(to_eight_bits(image.rgb), self.scale), alpha, image.gray, image.icc_profile)

    def _answer(self, data: bytes, work: Callable[[Image], Image]) -> Answer:
        clock = [time.perf_counter()]
        _check_size(data, self._max_pixels)
        # Readers and writers of the package go through files; both see to it that nothing half-done is handed on.
        with tempfile.TemporaryDirectory(prefix="odm-deploy-") as folder:
            source, result = Path(folder) / "in", Path(folder) / "out.png"
            source.write_bytes(data)
            try:
                image = read_image(source, max_pixels=self._max_pixels, max_bits=16)
            except InputError as error:
                raise InputError("cannot read the image", why=error.why, fix=error.fix) from error
            clock.append(time.perf_counter())
            upscaled = work(image)
            clock.append(time.perf_counter())
            write_image(result, upscaled)
            png = result.read_bytes()
        clock.append(time.perf_counter())
        spans = [1e3 * (end - start) for start, end in itertools.pairwise(clock)]
        return Answer(png, dict(zip(("decode", "upscale", "encode"), spans, strict=True)))


def _check_size(data: bytes, max_pixels: int) -> None:
    """Refuse images whose header promises too many pixels; what is no image at all is the reader's to refuse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with PillowImage.open(io.BytesIO(data), formats=READERS) as opened:
                width, height = opened.size
        except PillowImage.DecompressionBombError as error:
            raise TooLargeError("the image is too large", why=str(error), fix="send a smaller one") from error
        except Exception:
            # Parsers raise whatever they stumble over; `read_image` says it properly.
            return
    if width * height > max_pixels:
        raise TooLargeError(
            "the image is too large",
            why=f"{width}x{height} is {width * height} pixels, the limit is {max_pixels}",
            fix="send a smaller one",
        )
