"""The optimization profiles of an engine: which shapes it takes, and which of them its kernels were chosen for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from odm_deploy.errors import InputError
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.runtimes.tensor_info import TensorInfo


def find_profile(engine: Any, inputs: Sequence[TensorInfo], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The index of the first profile of a `trt.ICudaEngine` that the shapes of all its inputs lie in.

    Raises:
        InputError: there is none; the message names the ranges.
    """
    ranges: list[str] = []
    for profile in range(engine.num_optimization_profiles):
        limits = {each.name: engine.get_tensor_profile_shape(each.name, profile) for each in inputs}
        if all(_within(shapes[name], low, high) for name, (low, _, high) in limits.items()):
            return profile
        ranges.extend(f"{name} {_dims(low)} to {_dims(high)}" for name, (low, _, high) in limits.items())
    given = ", ".join(f"{name} {_dims(shape)}" for name, shape in shapes.items())
    raise InputError(
        f"the engine was not built for {given}",
        why=f"it takes {'; '.join(ranges)}",
        fix="use tiles or images within it, or build it again with wider --shapes",
    )


def image_shapes(engine: Any, source: TensorInfo, profile: int) -> InputShapes:
    """A profile of a `trt.ICudaEngine` whose input `source` takes images, as [N, 3, H, W] whatever their layout."""
    n, c, h, w = (0, 3, 1, 2) if source.images.layout == "nhwc" else (0, 1, 2, 3)
    limits = engine.get_tensor_profile_shape(source.name, profile)
    low, best, high = ((each[n], each[c], each[h], each[w]) for each in limits)
    return InputShapes(low, best, high)


def _within(shape: Iterable[int], low: Iterable[int], high: Iterable[int]) -> bool:
    return all(least <= size <= most for least, size, most in zip(low, shape, high, strict=True))


def _dims(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
