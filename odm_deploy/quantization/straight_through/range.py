"""Levels on a range [l, u] whose zero is snapped to a level, or free."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odm_deploy.grid import MAX_BITS, zero_point_step
from odm_deploy.quantization.power_of_two import scale_near_power_of_two
from odm_deploy.quantization.straight_through.division import divided


def snapped_grid(
    lower: Tensor, upper: Tensor, bits: int, *, power_of_two: bool = False, nearness: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid on [lower, upper] whose zero is snapped to a level; float32 scalars.

    Needs lower <= 0 <= upper and lower < upper. With `power_of_two` the scale is `scale_near_power_of_two`, and at 8
    bits the zero point is even (`zero_point_step`) and the range grows or shrinks at both ends (`shared_room`).
    """
    code_max = 2**bits - 1
    scale = divided(upper - lower, code_max)
    if power_of_two:
        scale = scale_near_power_of_two(scale, nearness)
        if bits == MAX_BITS:
            has_both = (lower < 0) & (upper > 0)
            lower = torch.where(has_both, lower - (scale * code_max - (upper - lower)) / 2, lower)
    step = zero_point_step(bits, exact_ties=power_of_two)
    return scale, torch.clamp(torch.round(-lower / (step * scale)) * step, 0, code_max // step * step)


def free_grid(lower: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and center (the level of code 2^(bits-1)) of the grid whose first level is `lower`; float32 scalars."""
    scale = divided(upper - lower, 2**bits - 1)
    return scale, lower + 2 ** (bits - 1) * scale


class _RangeQuantize(torch.autograd.Function):
    """x on the grid of [lower, upper], zero snapped or free."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        lower: Tensor,
        upper: Tensor,
        bits: int,
        free: bool,
        power_of_two: bool,
        nearness: Tensor | None,
    ) -> Tensor:
        code_max, half = 2**bits - 1, 2 ** (bits - 1)
        if free:
            scale, center = free_grid(lower, upper, bits)
            levels = _levels((x - center) / scale, scale, half, code_max) + center
            first, last = -half * scale + center, (code_max - half) * scale + center
        else:
            scale, zero_point = snapped_grid(lower, upper, bits, power_of_two=power_of_two, nearness=nearness)
            levels = _levels(x / scale, scale, zero_point, code_max)
            first, last = -zero_point * scale, (code_max - zero_point) * scale
        ctx.save_for_backward(x, levels, first, last, upper - lower)
        return levels

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, levels, first, last, width = ctx.saved_tensors
        # A product with a mask takes a quarter of the time of masked_fill or where on a CPU.
        grad_x = (x >= first).logical_and_(x <= last).to(grad.dtype).mul_(grad)
        # The mismatch is not differentiated with respect to ranges: then half of the work below is not wanted.
        if not any(ctx.needs_input_grad[1:3]):
            return grad_x, None, None, None, None, None, None
        # (y - clip(x)) vanishes outside the range, where y is the clipped value itself.
        rounding = _total(grad_x, levels - x, width) / width
        from_above = _total(grad, x > last, width)
        from_outside = grad.sum_to_size(width.shape) - grad_x.sum_to_size(width.shape)
        return grad_x, from_outside - from_above - rounding, from_above + rounding, None, None, None, None


def _levels(quotient: Tensor, scale: Tensor, zero_point: Tensor | int, code_max: int) -> Tensor:
    """(clamp(round(quotient) + zero_point, 0, code_max) - zero_point) * scale."""
    if torch.compiler.is_compiling():
        # The compiler of torch 2.11 loses, without a word, the gradients of a function that writes in place.
        return (torch.clamp(torch.round(quotient) + zero_point, 0, code_max) - zero_point) * scale
    # In the memory of `quotient`: on a CPU, fresh memory costs more than the arithmetic.
    return quotient.round_().add_(zero_point).clamp_(0, code_max).sub_(zero_point).mul_(scale)


def _total(grad: Tensor, share: Tensor, like: Tensor) -> Tensor:
    """The sum of grad * share over what one value of `like` stands for."""
    # Compiled, it is one loop in any case, which must not be told to follow an order other than that of memory.
    if like.numel() == 1 and not torch.compiler.is_compiling():
        return torch.dot(grad.flatten(), share.flatten().to(grad.dtype)).reshape(like.shape)
    return (grad * share).sum_to_size(like.shape)


def range_quantize(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    bits: int,
    *,
    free: bool = False,
    power_of_two: bool = False,
    nearness: Tensor | None = None,
) -> Tensor:
    """Levels of `x` on a learnable range.

    Args:
        x: activations, any shape; computed as float32.
        lower: float32, [] or broadcastable to `x` (a range per image), <= 0 unless `free`.
        upper: float32, shaped like `lower`, >= 0 unless `free`, > lower.
        bits: width of a code.
        free: the first level is exactly `lower`, and zero need not be a level.
        power_of_two: the scale is the power of two nearest to the range's; gradients pass that rounding straight
            through, so that exponents are learned along with the range.
        nearness: how near, while exponents are annealed (`scale_near_power_of_two`).

    Returns:
        float32, shaped like `x`, differentiable in x, lower and upper.
    """
    return _RangeQuantize.apply(x.float(), lower, upper, bits, free, power_of_two, nearness)  # type: ignore[no-any-return]
