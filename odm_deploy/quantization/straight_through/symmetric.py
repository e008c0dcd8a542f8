"""Levels of weights on a symmetric range [-u, u], with zero or around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odm_deploy.quantization.power_of_two import scale_near_power_of_two
from odm_deploy.quantization.straight_through.division import divided


def symmetric_codes(
    weight: Tensor,
    bound: Tensor,
    bits: int,
    *,
    mid_rise: bool,
    power_of_two: bool = False,
    nearness: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes (as floats) and scale of weights on a symmetric range [-bound, bound].

    Args:
        weight: float32 [O, ...].
        bound: float32, broadcastable to `weight`, > 0.
        bits: width of a code.
        mid_rise: odd codes -(2^b-1)..2^b-1 without zero (ODM v2) rather than -(2^(b-1)-1)..2^(b-1)-1.
        power_of_two: the scale is the power of two nearest to the range's.
        nearness: how near, while exponents are annealed (`scale_near_power_of_two`).
    """
    last = 2**bits - 1 if mid_rise else 2 ** (bits - 1) - 1
    scale = divided(bound, last)
    if power_of_two:
        scale = scale_near_power_of_two(scale, nearness)
    if mid_rise:
        index = torch.clamp(torch.round((weight / scale + last) / 2), 0, last)
        return 2 * index - last, scale
    return torch.clamp(torch.round(weight / scale), -last, last), scale


class _SymmetricQuantize(torch.autograd.Function):
    """Weights on a symmetric grid; gradients as for a range with l = -bound, u = bound."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bound: Tensor,
        bits: int,
        mid_rise: bool,
        power_of_two: bool,
        nearness: Tensor | None,
    ) -> Tensor:
        codes, scale = symmetric_codes(
            weight, bound, bits, mid_rise=mid_rise, power_of_two=power_of_two, nearness=nearness
        )
        levels = codes * scale
        last_level = scale * (2**bits - 1 if mid_rise else 2 ** (bits - 1) - 1) if power_of_two else bound
        ctx.save_for_backward(weight, levels, last_level)
        return levels

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        weight, levels, bound = ctx.saved_tensors
        outside = weight.abs() > bound
        grad_weight = grad * outside.logical_not().to(grad.dtype)
        if not ctx.needs_input_grad[1]:
            return grad_weight, None, None, None, None, None
        share = torch.where(outside, torch.sign(weight), (levels - weight) / bound)
        return grad_weight, (grad * share).sum_to_size(bound.shape), None, None, None, None


def symmetric_quantize(
    weight: Tensor,
    bound: Tensor,
    bits: int,
    *,
    mid_rise: bool,
    power_of_two: bool = False,
    nearness: Tensor | None = None,
) -> Tensor:
    """Weights on a symmetric grid, differentiable in `weight` and `bound`; see `symmetric_codes`."""
    return _SymmetricQuantize.apply(weight.float(), bound, bits, mid_rise, power_of_two, nearness)  # type: ignore[no-any-return]
