"""The straight-through quantizers that methods are built of: fake-quantize forward, closed-form gradients backward.

Forward arithmetic is that of `odm_deploy.grid` and `odm_deploy.quantization`, operation by operation, so that a frozen
layer gives the same bits as the trainable one. Gradients are METHODS' "common quantizer" (ODM, Eqs. 1-2, with the
rounding passed straight through, Bengio et al. 2013): with y the level and clip(x) the clipped input,

    dy/dx = [l <= x <= u]     dy/du = [x > u] + (y - clip(x)) / (u - l)     dy/dl = [x < l] - (y - clip(x)) / (u - l)

Everything is float32, also under autocast.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from odm_deploy.grid import MAX_BITS
from odm_deploy.quantization.power_of_two import nearest_power_of_two, round_to_multiples

RoundDerivative = Literal["one", "tanh"]
"""What rounding passes on: the gradient itself, or QuantSR's redistribution of it (`rounding_derivative`)."""


def scale_near_power_of_two(scale: Tensor, nearness: Tensor | None) -> Tensor:
    """The power of two nearest to each scale, or, with `nearness` below 1, part of the way there.

    Args:
        scale: > 0, any shape.
        nearness: [] in [0, 1], on a logarithmic scale; 0 leaves scales alone. None: 1.
    """
    if nearness is None:
        return nearest_power_of_two(scale)
    exponent = torch.log2(scale.double())
    return torch.exp2(torch.lerp(exponent, torch.round(exponent), nearness.double())).to(scale.dtype)


def snapped_grid(
    lower: Tensor, upper: Tensor, bits: int, *, power_of_two: bool = False, nearness: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid on [lower, upper] whose zero is snapped to a level; float32 scalars.

    Needs lower <= 0 <= upper and lower < upper. With `power_of_two` the scale is `scale_near_power_of_two`, and at 8
    bits the zero point is even, as `Grid.from_range` explains.
    """
    code_max = 2**bits - 1
    scale = (upper - lower) / code_max
    if not power_of_two:
        return scale, torch.clamp(torch.round(-lower / scale), 0, code_max)
    scale = scale_near_power_of_two(scale, nearness)
    step = 2 if bits == MAX_BITS else 1
    return scale, torch.clamp(torch.round(-lower / (step * scale)) * step, 0, code_max // step * step)


def free_grid(lower: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and center (the level of code 2^(bits-1)) of the grid whose first level is `lower`; float32 scalars."""
    scale = (upper - lower) / (2**bits - 1)
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
            codes = _codes((x - center).div_(scale), half, code_max)
            levels = codes.sub_(half).mul_(scale).add_(center)
            first, last = -half * scale + center, (code_max - half) * scale + center
        else:
            scale, zero_point = snapped_grid(lower, upper, bits, power_of_two=power_of_two, nearness=nearness)
            levels = _codes(x / scale, zero_point, code_max).sub_(zero_point).mul_(scale)
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


def _codes(quotient: Tensor, zero_point: Tensor | int, code_max: int) -> Tensor:
    """clamp(round(quotient) + zero_point, 0, code_max), in the memory of `quotient`."""
    return quotient.round_().add_(zero_point).clamp_(0, code_max)


def _total(grad: Tensor, share: Tensor, like: Tensor) -> Tensor:
    """The sum of grad * share over what one value of `like` stands for."""
    if like.numel() == 1:
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
    scale = bound / last
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


class _RoundToMultiples(torch.autograd.Function):
    """The nearest multiple of a unit, the gradient passed straight through."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, unit: Tensor) -> Tensor:
        return round_to_multiples(values, unit)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None


def round_straight_through(values: Tensor, unit: Tensor) -> Tensor:
    """The multiples of `unit` nearest to `values`; the gradient is that of `values`."""
    return _RoundToMultiples.apply(values, unit)  # type: ignore[no-any-return]


def step_codes(x: Tensor, step: Tensor, negative_codes: int, positive_codes: int) -> Tensor:
    """Codes -Qn .. Qp of `x` as floats; `step` broadcasts to `x`."""
    return torch.clamp(torch.round(x / step), -negative_codes, positive_codes)


def rounding_derivative(quotient: Tensor, kind: RoundDerivative) -> Tensor:
    """What stands in for the derivative of rounding at `quotient`.

    `tanh` is QuantSR's (Qin et al., NeurIPS 2023, redistribution-driven learnable quantizer): the derivative of a tanh
    staircase, (1 - tanh^2(f - 1/2)) / (2 tanh(1/2)) with f the fractional part; its mean over a step is one.
    """
    if kind == "one":
        return torch.ones_like(quotient)
    fraction = quotient - torch.floor(quotient)
    return (1.0 - torch.tanh(fraction - 0.5).square()) / (2.0 * math.tanh(0.5))


class _StepQuantize(torch.autograd.Function):
    """x on the levels step * {-Qn .. Qp}; LSQ's gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        negative_codes: int,
        positive_codes: int,
        gradient_scale: float,
        derivative: RoundDerivative,
    ) -> Tensor:
        quotient = x / step
        codes = torch.clamp(torch.round(quotient), -negative_codes, positive_codes)
        ctx.save_for_backward(quotient, codes, step)
        ctx.bounds, ctx.gradient_scale, ctx.derivative = (-negative_codes, positive_codes), gradient_scale, derivative
        return codes * step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        quotient, codes, step = ctx.saved_tensors
        first, last = ctx.bounds
        outside = (quotient < first) | (quotient > last)
        slope = rounding_derivative(quotient, ctx.derivative)
        # LSQ, Eq. 3: round(x/s) - x/s inside, the clipped code outside.
        share = torch.where(outside, codes, codes - quotient * slope)
        grad_step = (grad * share).sum_to_size(step.shape) * ctx.gradient_scale
        return grad * slope.mul_(outside.logical_not_()), grad_step, None, None, None, None


def step_quantize(
    x: Tensor,
    step: Tensor,
    negative_codes: int,
    positive_codes: int,
    *,
    gradient_scale: float = 1.0,
    derivative: RoundDerivative = "one",
) -> Tensor:
    """Levels of `x` on a learned step (LSQ, Esser et al. 2020, Eqs. 1-3).

    Args:
        x: any shape; computed as float32.
        step: float32, broadcastable to `x`, > 0.
        negative_codes: Qn, >= 0.
        positive_codes: Qp, > 0.
        gradient_scale: factor on the gradient of `step`.
        derivative: stand-in for the derivative of rounding.

    Returns:
        float32, shaped like `x`, differentiable in x and step.
    """
    return _StepQuantize.apply(  # type: ignore[no-any-return]
        x.float(), step, negative_codes, positive_codes, gradient_scale, derivative
    )
