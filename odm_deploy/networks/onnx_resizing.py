"""ONNX's Resize and Upsample: PyTorch's `interpolate` where it is the same, else values picked and weighted by place.

Places between values are fractions of whole numbers, so that rounding decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.networks.onnx_values import Attributes, integers, text

_FIRST_OPSET_WITH_PLACES = 11
"""Before it there was one rule: the place of value i is i divided by the factor."""
_LARGEST_DENOMINATOR = 1000
_SAME_FACTOR = 1e-7
_CUBIC = -0.75
"""Coefficient that ONNX assumes, and PyTorch has."""
_HALF_PIXEL = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
"""They differ where a length times the factor is no whole number, or the result is one value long."""


@dataclass(frozen=True)
class _Rule:
    """What the attributes of a Resize say."""

    mode: str
    place: str
    nearest: str
    cubic: float
    exclude_outside: bool


def resize(inputs: list[Any], attributes: Attributes) -> Tensor:
    """A tensor resized along its axes, by factors or to sizes.

    Raises:
        InputError: a resizing that nothing here computes.
    """
    x, rule = inputs[0], _rule(attributes)
    if attributes.get("antialias", 0):
        raise _refuse("antialiasing")
    if text(attributes.get("keep_aspect_ratio_policy", "stretch")) != "stretch":
        raise _refuse("keep_aspect_ratio_policy")
    scales = inputs[2] if len(inputs) > 2 else inputs[1] if len(inputs) == 2 else None
    wanted = inputs[3] if len(inputs) > 3 else None
    named = [axis % x.dim() for axis in attributes.get("axes") or range(x.dim())]
    if wanted is not None:
        sizes = dict(zip(named, integers(wanted), strict=True))
        axes = [axis for axis, size in sizes.items() if not _is_kept(size, x.shape[axis])]
        return _resize_along(x, {axis: (sizes[axis], None) for axis in axes}, rule)
    factors = {axis: float(factor) for axis, factor in zip(named, integers(scales), strict=True) if factor != 1}
    return _resize_along(
        x, {axis: (torch.sym_int(x.shape[axis] * factor), factor) for axis, factor in factors.items()}, rule
    )


def _rule(attributes: Attributes) -> _Rule:
    mode = text(attributes.get("mode", "nearest"))
    by_quotient = attributes["opset"] < _FIRST_OPSET_WITH_PLACES
    return _Rule(
        mode,
        "asymmetric" if by_quotient else text(attributes.get("coordinate_transformation_mode", "half_pixel")),
        "floor" if by_quotient else text(attributes.get("nearest_mode", "round_prefer_floor")),
        attributes.get("cubic_coeff_a", _CUBIC),
        bool(attributes.get("exclude_outside", 0)),
    )


def _is_kept(size: Any, length: Any) -> bool:
    """Whether a size is the length already; of sizes that the image decides nobody knows."""
    return isinstance(size, int) and isinstance(length, int) and size == length


def _resize_along(x: Tensor, axes: dict[int, tuple[Any, float | None]], rule: _Rule) -> Tensor:
    """Resize axes to a size each; factors say which places that is where a size is rounded."""
    factors = [factor for _, factor in axes.values()]
    if x.dim() == 4 and len(axes) == 2 and _is_of_torch(rule, factors):
        order = [axis for axis in range(4) if axis not in axes] + list(axes)
        size = [size for size, _ in axes.values()]
        mode = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[rule.mode]
        corners = None if rule.mode == "nearest" else rule.place == "align_corners"
        result = F.interpolate(x.permute(order), size, mode=mode, align_corners=corners)
        return result.permute([order.index(axis) for axis in range(4)])
    for axis, (size, factor) in axes.items():
        x = _resize_axis(x, axis, size, factor, rule)
    return x


def _is_of_torch(rule: _Rule, factors: list[float | None]) -> bool:
    """Whether `interpolate` picks or weights the same values."""
    whole = all(factor is not None and factor.is_integer() for factor in factors)
    if rule.mode == "nearest":
        floor = rule.nearest == "floor" and rule.place in ("asymmetric", "tf_half_pixel_for_nn")
        middle = rule.nearest.startswith("round") and rule.place in _HALF_PIXEL
        return (whole and (floor or middle)) or (rule.nearest == "floor" and rule.place == "asymmetric")
    usual = rule.mode == "linear" or (abs(rule.cubic - _CUBIC) < _SAME_FACTOR and not rule.exclude_outside)
    return usual and rule.place in ("align_corners", *(_HALF_PIXEL if whole else _HALF_PIXEL[:2]))


def _resize_axis(x: Tensor, axis: int, size: Any, factor: float | None, rule: _Rule) -> Tensor:
    length = x.shape[axis]
    index = torch.arange(size, device=x.device)
    above, below = _place(index, length, size, factor, rule)

    def pick(at: Tensor) -> Tensor:
        return x.index_select(axis, at.clamp(min=0).minimum(torch.full_like(at, length - 1)))

    if rule.mode == "nearest":
        return pick(_nearest(above, below, rule.nearest))
    first = _floor(above, below)
    part = (above - first * below).to(x.dtype) / below
    offsets, weights = ((0, 1), [1 - part, part]) if rule.mode == "linear" else ((-1, 0, 1, 2), _cubic(part, rule))
    if rule.exclude_outside:
        inside = [((first + offset >= 0) & (first + offset < length)).to(x.dtype) for offset in offsets]
        weights = [weight * kept for weight, kept in zip(weights, inside, strict=True)]
        total = sum(weights[1:], weights[0])
        weights = [weight / total for weight in weights]
    shape = [-1, *[1] * (x.dim() - 1 - axis)]
    parts = [pick(first + offset) * weight.reshape(shape) for offset, weight in zip(offsets, weights, strict=True)]
    return sum(parts[1:], parts[0])


def _place(index: Tensor, length: Any, size: Any, factor: float | None, rule: _Rule) -> tuple[Tensor, Any]:
    """Where in the input each value of the output lies: a numerator and the denominator."""
    up, down = size, length
    if factor is not None:
        ratio = Fraction(factor).limit_denominator(_LARGEST_DENOMINATOR)
        if abs(float(ratio) - factor) > _SAME_FACTOR * factor:
            raise _refuse(f"{rule.mode} {rule.place} by a factor of {factor}")
        up, down = ratio.numerator, ratio.denominator
    if rule.place in _HALF_PIXEL and (rule.place != "half_pixel_symmetric" or factor is None or down == 1):
        return (2 * index + 1) * down - up, 2 * up
    if rule.place == "asymmetric":
        return index * down, up
    if rule.place == "tf_half_pixel_for_nn":
        return (2 * index + 1) * down, 2 * up
    if rule.place == "align_corners":
        return index * (length - 1), torch.sym_max(size - 1, 1)
    raise _refuse(f"{rule.mode} with {rule.place}" + ("" if factor is None else f" by a factor of {factor}"))


def _floor(above: Tensor, below: Any) -> Tensor:
    """Whole quotients of numerators from -denominator on: runtimes cut negative ones towards zero."""
    return torch.div(above + below, below, rounding_mode="floor") - 1


def _nearest(above: Tensor, below: Any, how: str) -> Tensor:
    if how == "floor":
        return _floor(above, below)
    if how == "ceil":
        return _floor(above + below - 1, below)
    # To the next whole number; a tie goes up, or down.
    return _floor(2 * above + below - int(how == "round_prefer_floor"), 2 * below)


def _cubic(part: Tensor, rule: _Rule) -> list[Tensor]:
    """Weights of the four values around a place (Keys, 1981)."""
    a = rule.cubic

    def far(distance: Tensor) -> Tensor:
        return ((distance - 5) * distance + 8) * distance * a - 4 * a

    def near(distance: Tensor) -> Tensor:
        return ((a + 2) * distance - (a + 3)) * distance**2 + 1

    return [far(part + 1), near(part), near(1 - part), far(2 - part)]


def _refuse(why: str) -> InputError:
    return InputError("the ONNX operator Resize cannot be converted here", why=why)
