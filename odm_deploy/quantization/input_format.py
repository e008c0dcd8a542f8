"""In which range and colour order a network takes its images, found by trying: no weights file says.

Photographs are shrunk and enlarged again in every format that is usual. Only in its own does a network restore them; in
another it may still enlarge smoothly, so what counts is the distance from the photograph, not from a plain enlargement.
Where nothing is enlarged they get noise: whatever a denoiser does less of leaves a clean photograph as it is.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.imaging.pixels import round_to_uint8, to_batch
from odm_deploy.imaging.resize import downscale
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.foreign import PROBE_PX, ForeignNetwork
from odm_deploy.networks.running import run_network
from odm_deploy.networks.trusted_builders import is_spandrel
from odm_deploy.progress import Track, untracked

Rgb = NDArray[np.uint8]

PROBES = 3
"""Photographs to try on: single ones may be flat, or odd."""
RANGES, ORDERS = (1.0, 255.0), ("rgb", "bgr")
CLEAR_DB = 0.5
"""How much better the reversed order has to be: networks treat colours much alike, and most take RGB."""
CLEAR_RANGE_DB = 0.2
"""How much better 0..255 has to be: to rectifiers and small biases ranges are much alike, and most networks take 0..1.
Those that take 0..255 have biases that spoil any image in 0..1."""
NOISE = 12.0
"""Standard deviation of the noise that a photograph gets where nothing is enlarged, in 8-bit steps."""
FAR_DB, ALIKE_DB = 8.0, 18.0
"""A network that gets what it takes lies no further below a plain enlargement than this, or restores this much of the
image anyway; those trained for looks lose 5 dB."""


@dataclasses.dataclass(frozen=True)
class InputFormat:
    """What was tried, and what of it the network takes."""

    input_range: float
    channel_order: str
    psnr_db: Mapping[tuple[float, str], float]
    """Of what became of the photographs, against them, by range and order."""
    enlarged_db: float
    """The same of a bicubic enlargement."""

    @property
    def fits(self) -> bool:
        """Whether the network restores photographs in any of the formats."""
        return max(self.psnr_db.values()) > min(self.enlarged_db - FAR_DB, ALIKE_DB)

    @property
    def is_clear(self) -> bool:
        """Whether one range is better than the other; of those alike, 0..1 is taken."""
        small, large = _best_of_ranges(self.psnr_db)
        return abs(large - small) > CLEAR_RANGE_DB

    def __str__(self) -> str:
        tried = ", ".join(f"0..{value:g} {order} {self.psnr_db[value, order]:.1f} dB" for value, order in self.psnr_db)
        return f"{tried}; a bicubic enlargement {self.enlarged_db:.1f} dB"


def settle_input_format(
    network: SuperResolutionNetwork,
    settings: Mapping[str, Any],
    photographs: Iterable[Rgb],
    track: Track = untracked,
) -> tuple[SuperResolutionNetwork, str]:
    """The network, told how images go into it where neither its authors nor the user said so, and a line about that.

    Args:
        network: any; this project's own are returned as they are.
        settings: what the user said; `input_range` and `channel_order` are taken from it.
        photographs: uint8 [H, W, 3], RGB; a few of them are looked at.
        track: shows progress over these.

    Raises:
        InputError: the network restores photographs in no format, or a photograph cannot be used.
    """
    if not isinstance(network, ForeignNetwork) or "input_range" in settings:
        return network, ""
    looked_at = list(itertools.islice(photographs, PROBES))
    found = find_input_format(network, track(looked_at, len(looked_at), "finding the input's format"))
    known = is_spandrel(network.config.builder)
    if not found.fits:
        if known:
            # Its authors' convention holds, and a network may do something else than restore photographs.
            return network, f"input taken as 0..1 rgb, as spandrel does, though nothing resembles the images: {found}"
        raise InputError(
            "the network restores images in no known input format",
            why=str(found),
            fix="check weights and builder; if it does something else, say --set input_range=1 or 255, and "
            "--set channel_order=bgr if it takes that",
        )
    order = str(settings.get("channel_order", found.channel_order))
    config = dataclasses.replace(network.config, input_range=found.input_range, channel_order=order)
    how = "found by trying"
    if not found.is_clear:
        how = "as most networks take it, since trying does not tell"
        if order != "rgb":
            how = f"{order} found by trying, and 0..1 {how} that"
    told = f"input 0..{found.input_range:g} {order}, {how}: {found}"
    return ForeignNetwork(config, network.net), told


@torch.no_grad()
def find_input_format(network: ForeignNetwork, photographs: Iterable[Rgb]) -> InputFormat:
    """Which range and order suit a network best; colours are RGB unless BGR is clearly better.

    Raises:
        InputError: no photograph, or one too small to shrink.
    """
    errors: dict[tuple[float, str], list[float]] = {key: [] for key in itertools.product(RANGES, ORDERS)}
    enlarged: list[float] = []
    for photograph in photographs:
        low, truth = _probe(photograph, network.scale)
        for value, order in errors:
            config = dataclasses.replace(network.config, input_range=value, channel_order=order)
            errors[value, order].append(
                _distance(run_network(ForeignNetwork(config, network.net), low), truth, network.scale)
            )
        plain = torch.nn.functional.interpolate(low, scale_factor=network.scale, mode="bicubic")
        enlarged.append(_distance(plain, truth, network.scale))
    if not enlarged:
        raise InputError("nothing to try the network on", why="there are no images")
    psnr = {key: _psnr(values) for key, values in errors.items()}
    small, large = _best_of_ranges(psnr)
    best = RANGES[large > small + CLEAR_RANGE_DB]
    order = "bgr" if psnr[best, "bgr"] > psnr[best, "rgb"] + CLEAR_DB else "rgb"
    return InputFormat(best, order, psnr, _psnr(enlarged))


def _best_of_ranges(psnr: Mapping[tuple[float, str], float]) -> list[float]:
    """The better order's figure of each of `RANGES`."""
    return [max(psnr[value, order] for order in ORDERS) for value in RANGES]


def _probe(photograph: Rgb, scale: int) -> tuple[Tensor, Tensor]:
    """The middle of a photograph, shrunk and as it is: float32 [1, 3, h, w] and [1, 3, scale*h, scale*w] in 0..255.

    Of the size that networks are watched at, because they run at that; what is smaller is continued by its mirror.
    """
    sides = [size * scale for size in PROBE_PX]
    missing = [max(side - size, 0) for side, size in zip(sides, photograph.shape[:2], strict=True)]
    whole = np.pad(photograph, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
    top, left = ((size - side) // 2 for size, side in zip(whole.shape[:2], sides, strict=True))
    truth = np.ascontiguousarray(whole[top : top + sides[0], left : left + sides[1]])
    if scale > 1:
        low = downscale(truth, scale)[0]
    else:
        noise = np.random.default_rng(0).normal(0.0, NOISE, truth.shape)
        low = round_to_uint8(truth + noise)
    return torch.from_numpy(to_batch(low)), torch.from_numpy(to_batch(truth))


def _distance(image: Tensor, truth: Tensor, border: int) -> float:
    """Mean squared error inside a border, of values clamped to those of images."""
    difference = (image.clamp(0, 255) - truth)[..., border:-border, border:-border]
    return float(difference.nan_to_num(255.0).square().mean())


def _psnr(errors: list[float]) -> float:
    return 10 * float(np.log10(255.0**2 / max(float(np.mean(errors)), 1e-6)))
