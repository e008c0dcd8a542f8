"""A network run on images. Where somebody else's code fails at their size, the error says at which sizes it does not.

Not part of a network's `forward`: what traces it, or counts its operations without data, has words of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError, OdmError, UsageError
from odm_deploy.grid import Grid
from odm_deploy.networks.base import SuperResolutionNetwork

SMALLEST_PX = 48
"""Height and width of the parts of images that calibration always looks at."""
SIZES_PX = ((SMALLEST_PX, SMALLEST_PX), (48, 64), (64, 64), (96, 96), (128, 128))
"""Heights and widths that are tried where another failed: parts of images, and what windows and poolings need."""
EXPORTED_PX = ((41, 55), (40, 56))
"""Heights and widths of which a network has to take one to be exported: bundles take images of every size."""
_LONGEST = 300


def run_network(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What a network makes of images [N, 3, H, W].

    Raises:
        UsageError: somebody else's network does not run at this size; with those at which it does.
        InputError: nor at any other, or not in float64.
    """
    foreign = isinstance(network, SuperResolutionNetwork) and network.is_foreign
    try:
        # Somebody else's code may scale its input in place (RCAN), and the caller goes on with the images.
        return network(images.clone() if foreign else images)
    except (OdmError, MemoryError):
        raise
    except Exception as error:  # somebody else's code may raise anything
        if not foreign or "can't allocate memory" in str(error):
            raise
        raise refused(network, images, error) from error


@torch.no_grad()
def check_exportable(network: SuperResolutionNetwork) -> None:
    """Run a network at the sizes that export traces it at, which is better known before calibration than after it.

    Raises:
        UsageError, InputError: it runs at none of them; as `run_network`.
    """
    failed: list[tuple[Tensor, Exception]] = []
    for height, width in EXPORTED_PX:
        image = torch.full((1, 3, height, width), 128.0)
        try:
            network(image)
        except Exception as error:  # as in `run_network`
            failed.append((image, error))
        else:
            return
    image, error = failed[-1]
    raise refused(network, image, error, first=True) from error


def refused(
    network: Callable[[Tensor], Tensor], images: Tensor, error: Exception, *, first: bool = False
) -> InputError | UsageError:
    """That a network failed on images [N, 3, H, W], with what its code says and other sizes that were tried.

    What fails on the `first` image, which has the size that every network is watched at, no smaller part helps.
    """
    why = f"{type(error).__name__}: {error}"[:_LONGEST]
    if images.dtype == torch.float64:
        return InputError(
            "the network does not run in float64, which tells how far rounding alone moves its output",
            why=why,
            fix="let its code keep the type of what it is given, without .float() and .half()",
        )
    running, failing = _tried(network, images)
    height, width = images.shape[2:]
    if not running and isinstance(error, (AttributeError, KeyError, TypeError)) and _is_quantized(network):
        return InputError(
            "the network's code does not run with quantized layers in place of its own",
            why=f"{type(error).__name__}: {error}"[:_LONGEST],
            fix="let it ask the layer itself, as in `self.conv.weight.dtype`, or its input, as in `x.dtype`",
        )
    if not running:
        return InputError(
            "the network does not run on an RGB image",
            why=f"float32 [1, 3, {height}, {width}]: {why}",
            fix=f"nor does it at {', '.join(failing)}",
        )
    other = f", not at {', '.join(failing)}" if failing else ""
    fix = f"it runs at {', '.join(running)}{other}: pad in its code to what it needs, since bundles take every size"
    if f"{SMALLEST_PX}x{SMALLEST_PX}" in running and not first:
        fix += f", or calibrate on larger images with quantize --crop {SMALLEST_PX}"
    return UsageError(f"the network does not run on images of {width}x{height} pixels", why=why, fix=fix)


def _is_quantized(network: Callable[[Tensor], Tensor]) -> bool:
    """Whether quantized layers stand in a network, where its code expects those it was written with."""
    if not isinstance(network, nn.Module):
        return False
    return any(isinstance(getattr(part, "grid", None), Grid) for part in network.modules())


def _tried(network: Callable[[Tensor], Tensor], images: Tensor) -> tuple[list[str], list[str]]:
    """Of `SIZES_PX`, those at which a network runs on black images, and the others but for that of `images`."""
    running: list[str] = []
    failing: list[str] = []
    for size in SIZES_PX:
        if size == tuple(images.shape[2:]):
            continue
        try:
            with torch.no_grad():
                network(images.new_zeros((1, images.shape[1], *size)))
        except Exception:  # as above
            failing.append(f"{size[1]}x{size[0]}")
        else:
            running.append(f"{size[1]}x{size[0]}")
    return running, failing
