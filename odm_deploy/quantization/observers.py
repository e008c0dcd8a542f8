"""What passes into a layer, summed up while the images stream by, in memory that does not grow with their number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.running import run_network

_HALF = 2**13
"""Bins on either side of zero: 2^13. A grid of 8 bits then has 16 bins a level or more, one of 4 bits 256."""

_SMALLEST_EXPONENT = -126
"""Of a bin's width, which then is the smallest normal float32."""


_COUNTED_AT_ONCE = 2**20
"""Values: as many as caches hold; features at the output's size are tens of millions."""


class Histogram:
    """Counts of values in 2^14 bins of equal width around zero, which widen as larger values arrive.

    A bin's width is a power of two and bin k covers [k * width, (k + 1) * width), so that doubling the width merges
    neighbours exactly: the counts are what they would have been with the final width from the start, in any order of
    arrival.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(2 * _HALF, np.int64)
        self._exponent: int | None = None

    def add(self, values: Tensor) -> None:
        """Count finite values of any shape."""
        self.add_within(values, *torch.aminmax(values))

    def add_within(self, values: Tensor, low: float | Tensor, high: float | Tensor) -> None:
        """Count values of which the smallest and the largest are known."""
        largest = max(-float(low), float(high))
        if self._exponent is None or largest >= math.ldexp(_HALF, self._exponent):
            self._widen(largest)
        assert self._exponent is not None
        # In the order in which they lie in memory: counts do not depend on it, and nothing is copied.
        strides = values.stride()
        ordered = values.permute(sorted(range(values.dim()), key=lambda axis: -strides[axis]))
        for part in ordered.flatten().split(_COUNTED_AT_ONCE):
            # Of a tiny negative value no quotient may underflow to zero, below which it belongs. int32 takes a third of
            # int64's time.
            part = part.double() if self._exponent > 0 else part
            bins = (part * 2.0**-self._exponent).floor_().to(torch.int32).add_(_HALF)
            self._counts += torch.bincount(bins, minlength=2 * _HALF).cpu().numpy()

    def occupied(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """Centres and counts of the bins that hold something, in ascending order."""
        (index,) = np.nonzero(self._counts)
        centres = np.ldexp((index - _HALF + 0.5).astype(np.float32), self._exponent or 0)
        return centres, self._counts[index].astype(np.float64)

    def _widen(self, largest: float) -> None:
        """Make room for +-largest."""
        # frexp: largest = m * 2^e with m < 1, so 2^13 bins of width 2^(e - 13) hold it. Zero has no exponent of its own
        # and must not fix a width that what follows is too small for.
        exponent = math.frexp(largest)[1] - int(math.log2(_HALF)) if largest else _SMALLEST_EXPONENT
        exponent = max(exponent, _SMALLEST_EXPONENT)
        if self._exponent is not None:
            for _ in range(exponent - self._exponent):
                merged = self._counts.reshape(-1, 2).sum(1)
                self._counts = np.concatenate([np.zeros(_HALF // 2, np.int64), merged, np.zeros(_HALF // 2, np.int64)])
        self._exponent = exponent


class InputObserver:
    """Statistics of one layer's input over all calibration images.

    Args:
        name: the layer's dotted name, for errors.
        percentile: in (50, 100]; when given, the mean over images of that percentile and of its mirror is kept too:
            the initialisation of the ODM papers (there 99), which stays put when one image has an outlier.
    """

    def __init__(self, name: str, percentile: float | None = None) -> None:
        self.name = name
        self.images = 0
        self.minimum = math.inf
        self.maximum = -math.inf
        self.histogram = Histogram()
        self._percentile = percentile
        self._lower_sum = self._upper_sum = 0.0

    def add(self, values: Tensor) -> None:
        """Take in the layer's input for one image, float of any shape.

        Raises:
            InputError: a value that is not finite.
        """
        values = values.detach().float()
        low, high = (float(bound) for bound in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError(
                f"the input of {self.name} is not finite",
                why=f"values from {low} to {high}",
                fix="check that the weights, the network and its hyper-parameters (--set) belong together",
            )
        self.images += 1
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.histogram.add_within(values, low, high)
        if self._percentile is not None:
            # numpy selects in linear time; torch.quantile sorts, and refuses more than 16 million values.
            lower, upper = np.percentile(values.cpu().numpy(), [100 - self._percentile, self._percentile])
            self._lower_sum += float(lower)
            self._upper_sum += float(upper)

    @property
    def percentile_range(self) -> tuple[float, float]:
        """Means over the images of the mirrored and of the plain percentile."""
        return self._lower_sum / self.images, self._upper_sum / self.images


def observe(
    network: SuperResolutionNetwork, images: Iterable[Tensor], layers: Iterable[str], percentile: float | None = None
) -> dict[str, InputObserver]:
    """Statistics of the inputs of `layers` while the float network runs over `images`, float32 [N, 3, H, W] in 0..255.

    Raises:
        InputError: no image, or activations that are not finite.
    """
    modules = dict(network.named_modules())
    observers = {name: InputObserver(name, percentile) for name in layers}

    def watched_by(observer: InputObserver) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: observer.add(inputs[0])

    with ExitStack() as hooks, torch.no_grad():
        for name, observer in observers.items():
            hooks.enter_context(modules[name].register_forward_pre_hook(watched_by(observer)))
        for image in images:
            run_network(network, image)
    if unseen := [name for name, observer in observers.items() if not observer.images]:
        raise InputError(
            "nothing to calibrate on", why=f"no image reached {unseen[0]}", fix="give --images more images"
        )
    return observers
