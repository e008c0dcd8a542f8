"""A network run on images. Where somebody else's code fails at their size, the error says at which sizes it does not.

Not part of a network's `forward`: what traces it, or counts its operations without data, has words of its own.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError, OdmError, UsageError
from odm_deploy.graphs.sides import divisor_of_sides, takes_multiples
from odm_deploy.grid import Grid
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.progress import counted

SMALLEST_PX = 48
"""Height and width of the parts of images that calibration always looks at."""
SIZES_PX = ((SMALLEST_PX, SMALLEST_PX), (48, 64), (64, 64), (96, 96), (128, 128))
"""Heights and widths that are tried where another failed: parts of images, and what windows and poolings need."""
EXPORTED_PX = ((41, 55), (40, 56), (48, 80))
"""Heights and widths of which a network has to take one to be exported: any, or multiples of 2, 4 and 8, or of 16. They
differ from each other and from channel counts, so that no two dimensions are taken for one; and of code that pads to
whole windows the branch that does so is the one that is traced."""
_OTHER_CHANNELS = re.compile(r"to have (\d+) channels, but got 3 channels")
"""What torch says of images for a network of gray ones, or of ones with transparency."""
_LONGEST = 300


def run_network(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What a network makes of images [N, 3, H, W].

    Raises:
        UsageError: somebody else's network does not run at this size; with those at which it does.
        InputError: nor at any other, or not in float64.
    """
    foreign = isinstance(network, SuperResolutionNetwork) and network.is_foreign
    try:
        with _making(images.dtype):
            # Somebody else's code may scale its input in place (RCAN), and the caller goes on with the images.
            return network(images.clone() if foreign else images)
    except (OdmError, MemoryError):
        raise
    except Exception as error:  # somebody else's code may raise anything
        if not foreign or "can't allocate memory" in str(error):
            raise
        raise refused(network, images, error) from error


def check_sizes(network: SuperResolutionNetwork, sizes_px: Iterable[tuple[int, int]]) -> None:
    """See that somebody else's network takes images of these heights and widths, before it computes for minutes.

    It runs without data, which takes no time; of code that does not, nothing is known before it runs.

    Raises:
        UsageError, InputError: as `run_network`.
    """
    run = _without_data(network) if network.is_foreign else None
    if run is None:
        return
    for height, width in dict.fromkeys(sizes_px):
        if not _runs(run, height, width):
            # What its code says, and whether it says so with data, too: it ends where sizes do not fit.
            run_network(network, torch.zeros(1, 3, height, width))


def multiples_taken(network: SuperResolutionNetwork) -> int:
    """The number whose multiples alone somebody else's network takes as sides of images, found without data.

    1 where it takes all sizes, or where nothing is known: its code does not go without data.
    """
    run = _without_data(network) if network.is_foreign else None
    return 1 if run is None else divisor_of_sides(partial(_runs, run)) or 1


def first_that_runs(network: SuperResolutionNetwork, arrangements: Iterable[Tensor]) -> Tensor:
    """Of several ways to give a network images [N, 3, H, W] the first that somebody else's code takes.

    It runs without data; of code that does not go without, and where it takes none, that is the first of all.
    """
    tried = list(arrangements)
    run = _without_data(network) if network.is_foreign else None
    if run is None:
        return tried[0]
    return next((images for images in tried if _runs(run, *images.shape[2:], len(images))), tried[0])


def _without_data(network: Callable[[Tensor], Tensor]) -> Callable[..., None] | None:
    """What runs a network at a height and a width, on a number of images, without data; None where its code does not
    go without.
    """
    try:
        shadow = copy.deepcopy(network).to("meta").eval() if isinstance(network, nn.Module) else None
    except Exception:  # as in `run_network`
        return None
    if shadow is None:
        return None

    def run(height: int, width: int, count: int = 1) -> None:
        # What the code makes on its own has no data, either.
        with torch.device("meta"), torch.no_grad():
            shadow(torch.empty(count, 3, height, width, device="meta"))

    return run if any(_runs(run, *size) for size in SIZES_PX) else None


def _runs(run: Callable[..., None], *size: int) -> bool:
    try:
        run(*size)
    except Exception:  # as in `run_network`
        return False
    return True


@contextmanager
def _making(dtype: torch.dtype) -> Generator[None]:
    """Let what a network's code makes itself, such as `torch.full((12,), 0.2)`, be float64 where its images are."""
    usual = torch.get_default_dtype()
    if dtype != torch.float64:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


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
    run = _without_data(network) or _with_data(network, images)
    running, failing = _tried(run, images)
    height, width = images.shape[2:]
    if not running and isinstance(error, (AttributeError, KeyError, TypeError)) and _is_quantized(network):
        return InputError(
            "the network's code does not run with quantized layers in place of its own",
            why=f"{type(error).__name__}: {error}"[:_LONGEST],
            fix="let it ask the layer itself, as in `self.conv.weight.dtype`, or its input, as in `x.dtype`",
        )
    what = "the network does not run on an RGB image"
    if not running and (wanted := _OTHER_CHANNELS.search(str(error))):
        return InputError(
            what,
            why=f"a layer takes {counted(int(wanted[1]), 'channel')} where it gets 3",
            fix="take weights for RGB images",
        )
    if not running:
        return InputError(
            what,
            why=f"float32 [1, 3, {height}, {width}]: {why}",
            fix=f"nor does it at {', '.join(failing)}",
        )
    what, pad = f"the network does not run on images of {width}x{height} pixels", "pad in its code to what it needs"
    if _is_quantized(network):
        divisor = divisor_of_sides(partial(_runs, run)) or 1
        if height % divisor or width % divisor:
            fix = f"{takes_multiples(divisor, height, width)}, or {pad}, and quantize it again"
            return UsageError(what, why=why, fix=fix)
    other = f", not at {', '.join(failing)}" if failing else ""
    *first_ones, last_one = (f"{columns}x{rows}" for rows, columns in EXPORTED_PX)
    exported = f"{', '.join(first_ones)} or {last_one}"
    fix = f"it runs at {', '.join(running)}{other}: {pad}, since export runs it at {exported}"
    if f"{SMALLEST_PX}x{SMALLEST_PX}" in running and not first and not _is_quantized(network):
        fix += f", or calibrate on parts of that size with quantize --crop {SMALLEST_PX}"
    return UsageError(what, why=why, fix=fix)


def _is_quantized(network: Callable[[Tensor], Tensor]) -> bool:
    """Whether quantized layers stand in a network, where its code expects those it was written with."""
    if not isinstance(network, nn.Module):
        return False
    return any(isinstance(getattr(part, "grid", None), Grid) for part in network.modules())


def _with_data(network: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[int, int], None]:
    """What runs a network on a black image of a height and a width."""

    @torch.no_grad()
    def run(height: int, width: int) -> None:
        network(images.new_zeros((1, images.shape[1], height, width)))

    return run


def _tried(run: Callable[[int, int], None], images: Tensor) -> tuple[list[str], list[str]]:
    """Of `SIZES_PX`, those at which a network runs, and the others but for that of `images`."""
    running: list[str] = []
    failing: list[str] = []
    for height, width in SIZES_PX:
        if (height, width) != tuple(images.shape[2:]):
            (running if _runs(run, height, width) else failing).append(f"{width}x{height}")
    return running, failing
