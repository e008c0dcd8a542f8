"""Levels that are multiples of a learned step: LSQ's and QuantSR's."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

RoundDerivative = Literal["one", "tanh"]
"""What rounding passes on: the gradient itself, or QuantSR's redistribution of it (`rounding_derivative`)."""


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
