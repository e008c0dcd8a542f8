"""ONNX operators that move, pad and pool images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.networks.onnx_resizing import resize
from odm_deploy.networks.onnx_values import Attributes, integers, text


def _refuse(op: str, why: str) -> InputError:
    return InputError(f"the ONNX operator {op} cannot be converted here", why=why)


def _axes(inputs: list[Any], attributes: Attributes, index: int) -> list[int] | None:
    if "axes" in attributes:
        return list(attributes["axes"])
    return integers(inputs[index]) if len(inputs) > index and inputs[index] is not None else None


def _reshape(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, wanted = inputs[0], integers(inputs[1])
    keeps = not attributes.get("allowzero", 0)
    return x.reshape([x.shape[index] if keeps and size == 0 else size for index, size in enumerate(wanted)])


def _slice(inputs: list[Any], attributes: Attributes) -> Tensor:
    x = inputs[0]
    starts = list(attributes["starts"]) if "starts" in attributes else integers(inputs[1])
    ends = list(attributes["ends"]) if "ends" in attributes else integers(inputs[2])
    axes = _axes(inputs, attributes, 3) or list(range(len(starts)))
    steps = integers(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = x.shape[axis]
        if step < 0 and isinstance(length, int):
            taken = range(length)[start:end:step]
            whole = taken == range(length)[::-1]
            x = x.flip(axis) if whole else x.index_select(axis, torch.tensor(taken, device=x.device))
            continue
        # Of an axis of any length.
        if step == -1 and start == -1 and end <= -(2**31):
            x = x.flip(axis)
            continue
        if step < 1:
            raise _refuse("Slice", f"a step of {step}")
        x = x[(*[slice(None)] * (axis % x.dim()), slice(start, end, step))]
    return x


def _pad(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, mode = inputs[0], text(attributes.get("mode", "constant"))
    amounts = list(attributes["pads"]) if "pads" in attributes else integers(inputs[1])
    axes = integers(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else list(range(x.dim()))
    half = len(amounts) // 2
    by_axis = {axis % x.dim(): (amounts[index], amounts[half + index]) for index, axis in enumerate(axes)}
    # torch counts from the last axis on.
    sides = [by_axis.get(axis, (0, 0)) for axis in reversed(range(x.dim()))]
    while sides and all(isinstance(amount, int) and amount == 0 for amount in sides[-1]):
        sides.pop()
    if mode != "constant" and sides:
        # Rows and columns together, which is how torch repeats borders.
        sides += [(0, 0)] * (x.dim() - 2 - len(sides))
    flat = [amount for pair in sides for amount in pair]
    if not flat:
        return x
    if mode == "constant":
        given = inputs[2] if len(inputs) > 2 else None
        value = attributes.get("value", 0.0) if given is None else given.reshape(-1)[0]
        return F.pad(x, flat, value=float(value))
    return F.pad(x, flat, {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode])


def _depth_to_space(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, block = inputs[0], attributes["blocksize"]
    if text(attributes.get("mode", "DCR")) == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, block = inputs[0], attributes["blocksize"]
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


def _symmetric(attributes: Attributes, op: str) -> tuple[int, ...]:
    pads = tuple(attributes.get("pads", (0, 0, 0, 0)))
    if pads[: len(pads) // 2] != pads[len(pads) // 2 :] or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise _refuse(op, f"padding {pads}")
    return pads[: len(pads) // 2]


def _average_pool(inputs: list[Any], attributes: Attributes) -> Tensor:
    return F.avg_pool2d(
        inputs[0],
        tuple(attributes["kernel_shape"]),
        tuple(attributes.get("strides", (1, 1))),
        _symmetric(attributes, "AveragePool"),
        bool(attributes.get("ceil_mode", 0)),
        bool(attributes.get("count_include_pad", 0)),
    )


def _max_pool(inputs: list[Any], attributes: Attributes) -> Tensor:
    return F.max_pool2d(
        inputs[0],
        tuple(attributes["kernel_shape"]),
        tuple(attributes.get("strides", (1, 1))),
        _symmetric(attributes, "MaxPool"),
        tuple(attributes.get("dilations", (1, 1))),
        bool(attributes.get("ceil_mode", 0)),
    )


def _split(inputs: list[Any], attributes: Attributes) -> tuple[Tensor, ...]:
    x, axis = inputs[0], attributes.get("axis", 0)
    if "split" in attributes:
        return x.split(list(attributes["split"]), axis)
    if len(inputs) > 1 and inputs[1] is not None:
        return x.split(integers(inputs[1]), axis)
    return x.chunk(attributes["outputs"], axis)


def _squeeze(inputs: list[Any], attributes: Attributes) -> Tensor:
    axes = _axes(inputs, attributes, 1)
    return inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(axes))


def _unsqueeze(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, axes = inputs[0], _axes(inputs, attributes, 1) or []
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _flatten(inputs: list[Any], attributes: Attributes) -> Tensor:
    axis = attributes.get("axis", 1)
    return inputs[0].flatten(axis) if axis == 1 else inputs[0].flatten(0, axis - 1).flatten(1)


def _expand(inputs: list[Any], _: Attributes) -> Tensor:
    shape = torch.broadcast_shapes(inputs[0].shape, integers(inputs[1]))
    return inputs[0].expand(shape)


def _transpose(inputs: list[Any], attributes: Attributes) -> Tensor:
    return inputs[0].permute(attributes.get("perm") or tuple(reversed(range(inputs[0].dim()))))


def _global_pool(function: Callable[..., Tensor]) -> Callable[[list[Any], Attributes], Tensor]:
    return lambda inputs, _: function(inputs[0], dim=tuple(range(2, inputs[0].dim())), keepdim=True)


IMAGE_OPERATORS: dict[str, Callable[[list[Any], Attributes], Any]] = {
    "AveragePool": _average_pool,
    "Concat": lambda inputs, attributes: torch.cat(inputs, attributes["axis"]),
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalMaxPool": _global_pool(torch.amax),
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": lambda inputs, _: inputs[0].repeat(integers(inputs[1])),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": resize,
}
