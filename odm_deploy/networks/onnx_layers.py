"""Convolutions and matrix products of an ONNX graph as torch layers, which is what gets quantized."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from odm_deploy.errors import UsageError

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass
class Layer:
    """One step of a graph: an operator, or a layer with weights of its own."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    module: str = ""
    """Name of the layer; empty for an operator."""
    padding: tuple[int, ...] = field(default=())
    """Zeros around the input that the layer itself cannot add: left, right, top, bottom."""

    def __post_init__(self) -> None:
        self.attributes = {**self.attributes, "outputs": len(self.outputs)}


Built = tuple[nn.Module, tuple[int, ...], list[str], tuple[str, str]]
"""A layer, what to pad in front of it, the inputs it still reads, and the names of weight and bias."""


def make_layer(step: Layer, shapes: dict[str, tuple[int, ...]], stripped: set[str]) -> Built | None:
    """The torch layer of a node whose weights are stored; None where there is no such layer.

    Raises:
        UsageError: a convolution that torch does not have.
    """
    weight, shape = step.inputs[1], shapes[step.inputs[1]]
    bias = step.inputs[2] if len(step.inputs) > 2 else ""
    if bias and bias not in stripped:
        return None
    if step.op == "MatMul":
        if len(shape) != 2:
            return None
        return nn.Linear(shape[0], shape[1], bias=False), (), step.inputs[:1], (weight, "")
    if step.op == "Gemm":
        return _gemm(step, shape, shapes.get(bias, ()), (weight, bias))
    if len(shape) != 4:
        raise UsageError("this ONNX graph cannot be converted", why=f"a {step.op} of {len(shape) - 2} dimensions")
    return _convolution(step, shape, (weight, bias))


def _gemm(step: Layer, shape: tuple[int, ...], bias: tuple[int, ...], names: tuple[str, str]) -> Built | None:
    plain = step.attributes.get("alpha", 1.0) == step.attributes.get("beta", 1.0) == 1.0
    rows, cols = shape if step.attributes.get("transB", 0) else shape[::-1]
    if not plain or step.attributes.get("transA", 0) or (names[1] and bias != (rows,)):
        return None
    return nn.Linear(cols, rows, bias=bool(names[1])), (), step.inputs[:1], names


def _convolution(step: Layer, shape: tuple[int, ...], names: tuple[str, str]) -> Built:
    attributes, kernel = step.attributes, (shape[2], shape[3])
    stride = tuple(attributes.get("strides", (1, 1)))
    dilation = tuple(attributes.get("dilations", (1, 1)))
    groups = attributes.get("group", 1)
    top, left, bottom, right = _pads(step, kernel, stride, dilation)
    symmetric = (top, left) == (bottom, right)
    bias = bool(names[1])
    if step.op == "ConvTranspose":
        if not symmetric or "output_shape" in attributes:
            raise UsageError("this ONNX graph cannot be converted", why="a ConvTranspose with padding on one side")
        extra = tuple(attributes.get("output_padding", (0, 0)))
        module = nn.ConvTranspose2d(
            shape[0],
            shape[1] * groups,
            kernel,
            stride,
            (top, left),
            extra,
            groups,
            bias,
            dilation,  # type: ignore[arg-type]
        )
        return module, (), step.inputs[:1], names
    inside = (top, left) if symmetric else (0, 0)
    module = nn.Conv2d(shape[1] * groups, shape[0], kernel, stride, inside, dilation, groups, bias)  # type: ignore[arg-type]
    return module, () if symmetric else (left, right, top, bottom), step.inputs[:1], names


def _pads(
    step: Layer, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """Top, left, bottom and right."""
    mode = step.attributes.get("auto_pad", b"NOTSET")
    if mode in (b"NOTSET", b"VALID"):
        top, left, bottom, right = step.attributes.get("pads", (0, 0, 0, 0)) if mode == b"NOTSET" else (0, 0, 0, 0)
        return top, left, bottom, right
    if any(step != 1 for step in stride):
        raise UsageError("this ONNX graph cannot be converted", why="auto_pad of a convolution with strides")
    totals = [size * (length - 1) for size, length in zip(dilation, kernel, strict=True)]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    first, last = (less, more) if mode == b"SAME_UPPER" else (more, less)
    return first[0], first[1], last[0], last[1]
