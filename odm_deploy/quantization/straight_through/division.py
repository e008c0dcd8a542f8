"""Division of a range by its number of steps, rounded alike on every device."""

from __future__ import annotations

from torch import Tensor


def divided(values: Tensor, steps: int) -> Tensor:
    """`values` / `steps`, the nearest float32 on CPUs and GPUs, compiled or not.

    CUDA kernels, and what torch compiles for GPUs, multiply by the reciprocal of a Python number, which is off by a
    unit in the last place for many float32: a model trained there would not be the one that is frozen. In float64 the
    same error is harmless, because a float32 divided by an odd number below 256 is never nearer than 2^-34, relatively,
    to the middle between two float32.

    Args:
        values: float32, any shape.
        steps: odd, 1 to 255.
    """
    return (values.double() / steps).float()
