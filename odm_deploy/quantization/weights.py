"""Weight codes: integers times a scale, symmetric around zero, per output channel or per layer.

Two families of levels are exact in int8 on every runtime:

- *mid-tread*: codes -2^(b-1)+1 .. 2^(b-1)-1, zero among them (the usual symmetric grid; at 2 bits ternary);
- *mid-rise*: the odd codes -(2^b-1) .. 2^b-1, no zero, 2^b levels (ODM v2's weights; at 2 bits {-u, -u/3, u/3, u}).
  Up to 7 bits, because 8-bit odd codes do not fit int8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odm_deploy.errors import InputError


@dataclass(frozen=True)
class WeightCodes:
    """Quantized weights of one layer: `codes * scale`.

    Raises:
        InputError: codes that are not int8, or not `first + step * k` with k in [0, 2^bits); scales that are not
            positive float32 of shape [1] or [O].
    """

    codes: Tensor
    """int8 [O, ...], shaped like the float weight."""
    scale: Tensor
    """float32 [O] (per output channel) or [1] (per layer), all > 0."""
    bits: int
    """Width of a stored code, 2 to 8."""
    first: int
    """The smallest code the levels allow."""
    step: int = 1
    """Distance between neighbouring codes: 1 mid-tread, 2 mid-rise."""

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.int8 or self.codes.dim() < 2:
            raise InputError("not weight codes", why=f"{self.codes.dtype} of shape {list(self.codes.shape)}")
        if self.scale.dtype != torch.float32 or self.scale.shape not in ((1,), (self.codes.shape[0],)):
            raise InputError(
                "not a weight scale",
                why=f"{self.scale.dtype} of shape {list(self.scale.shape)} for {self.codes.shape[0]} output channels",
            )
        if not bool((torch.isfinite(self.scale) & (self.scale > 0)).all()):
            raise InputError("not a weight scale", why=f"smallest is {float(self.scale.min())}", fix="scales are > 0")
        if not 2 <= self.bits <= 8 or self.step not in (1, 2) or self.first < -128 or self.last > 127:
            raise InputError(
                "no such weight levels", why=f"{self.bits} bits, codes {self.first} to {self.last} by {self.step}"
            )
        index = self.codes.to(torch.int16) - self.first
        if bool(((index < 0) | (index > self.last - self.first) | (index % self.step != 0)).any()):
            raise InputError(
                "weight codes off their levels",
                why=f"codes {int(self.codes.min())} to {int(self.codes.max())}, "
                f"levels {self.first} to {self.last} by {self.step}",
            )

    @property
    def last(self) -> int:
        """The largest code the levels allow."""
        return self.first + self.step * (2**self.bits - 1)


def per_output(scale: Tensor, weight: Tensor) -> Tensor:
    """A scale [O] or [1] shaped so that it broadcasts over a weight [O, ...]."""
    return scale.reshape(-1, *[1] * (weight.dim() - 1))


def nearest_codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Mid-tread codes whose levels are nearest to a float weight [O, ...], for a scale [O] or [1], > 0.

    Whole numbers from -2^(bits-1)+1 to 2^(bits-1)-1, but floats, shaped like `weight`.
    """
    limit = 2 ** (bits - 1) - 1
    return torch.clamp(torch.round(weight / per_output(scale, weight)), -limit, limit)


def quantize_weight(
    weight: Tensor,
    bits: int,
    *,
    per_channel: bool = True,
    search_mse: bool = False,
    power_of_two: bool = False,
) -> WeightCodes:
    """Mid-tread codes of a float weight.

    Args:
        weight: float [O, ...].
        bits: width of a code, 2 to 8.
        per_channel: one scale per output channel rather than one per layer. Free on every runtime.
        search_mse: choose each scale by the smallest squared error instead of the largest |w|; pays below 6 bits.
        power_of_two: scales are powers of two, rounded up (the `exact` profile).

    Raises:
        InputError: a weight that is not finite.
    """
    flat = weight.detach().float().flatten(1) if per_channel else weight.detach().float().reshape(1, -1)
    if not bool(torch.isfinite(flat).all()):
        raise InputError("cannot quantize a weight", why="it holds NaN or infinity", fix="check the checkpoint")
    limit = 2 ** (bits - 1) - 1
    largest = flat.abs().amax(1)
    # A dead channel has no range, but no runtime accepts a scale of zero.
    scale = torch.where(largest > 0, largest / limit, torch.ones_like(largest))
    if search_mse:
        scale = _mse_scale(flat, scale, bits, power_of_two=power_of_two)
    elif power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    # Denormal scales divide by zero on hardware that flushes them.
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    codes = nearest_codes(flat, scale, bits)
    return WeightCodes(codes.to(torch.int8).reshape(weight.shape), scale, bits, first=-(2 ** (bits - 1)))


def _mse_scale(flat: Tensor, scale: Tensor, bits: int, *, power_of_two: bool) -> Tensor:
    """The scale of each row with the smallest squared error among shrunk versions of `scale`."""
    shrink = torch.linspace(1.0, 0.4, 61) if not power_of_two else torch.tensor([1.0, 0.5, 0.25])
    start = torch.exp2(torch.ceil(torch.log2(scale))) if power_of_two else scale
    best, best_error = start, torch.full_like(start, float("inf"))
    for factor in shrink:
        candidate = start * factor
        levels = nearest_codes(flat, candidate, bits) * candidate[:, None]
        error = (flat - levels).square().sum(1)
        better = error < best_error
        best, best_error = torch.where(better, candidate, best), torch.where(better, error, best_error)
    return best
