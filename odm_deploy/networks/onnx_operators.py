"""ONNX operators on tensors, each in the terms of torch. Layers with weights are modules; see `onnx_network`."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odm_deploy.networks.onnx_images import IMAGE_OPERATORS
from odm_deploy.networks.onnx_picking import PICKING_OPERATORS
from odm_deploy.networks.onnx_values import Attributes, Value, as_tensor, integers, text

Operator = Callable[[list[Any], Attributes], Any]

_DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float32,
    11: torch.float32,
}
_FIRST_OPSET_WITH_SOFTMAX_OF_ONE_AXIS = 13
"""Before it, all axes from the named one on were one."""


def _broadcast(function: Callable[[Any, Any], Any]) -> Operator:
    def run(inputs: list[Value], _: Attributes) -> Tensor:
        like = next(value for value in inputs if isinstance(value, Tensor))
        result: Any = reduce(function, [as_tensor(value, like) for value in inputs])
        return result

    return run


def _pointwise(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda inputs, _: function(inputs[0])


def _extreme(function: Callable[[Tensor, Tensor], Tensor], bound: str) -> Callable[[Any, Any], Tensor]:
    def run(a: Any, b: Any) -> Tensor:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return function(a, b)
        tensor, number = (a, b) if isinstance(a, Tensor) else (b, a)
        return torch.clamp(tensor, **{bound: number})

    return run


def _prelu(inputs: list[Any], _: Attributes) -> Tensor:
    x, slope = inputs[0], as_tensor(inputs[1], inputs[0])
    if isinstance(slope, Tensor) and x.dim() >= 2 and slope.numel() == x.shape[1] == slope.shape[-x.dim() + 1 :][0]:
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x >= 0, x, x * slope)


def _number(value: Any) -> float | None:
    """A stored scalar, such as a bound."""
    if value is None:
        return None
    return float(value.item() if isinstance(value, Tensor) else value.reshape(-1)[0])


def _clip(inputs: list[Any], attributes: Attributes) -> Tensor:
    low, high, *_ = (*map(_number, inputs[1:]), None, None)
    return torch.clamp(inputs[0], attributes.get("min", low), attributes.get("max", high))


def _reduction(function: Callable[..., Tensor]) -> Operator:
    def run(inputs: list[Any], attributes: Attributes) -> Tensor:
        axes = list(attributes["axes"]) if "axes" in attributes else integers(inputs[1]) if len(inputs) > 1 else []
        if not axes:
            axes = list(range(inputs[0].dim()))
        return function(inputs[0], dim=axes, keepdim=bool(attributes.get("keepdims", 1)))

    return run


def _product(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in dim), reverse=True):
        x = x.prod(axis, keepdim)
    return x


def _softmax(inputs: list[Any], attributes: Attributes, function: Callable[..., Tensor] = F.softmax) -> Tensor:
    x = inputs[0]
    of_one_axis = attributes["opset"] >= _FIRST_OPSET_WITH_SOFTMAX_OF_ONE_AXIS
    axis = attributes.get("axis", -1 if of_one_axis else 1) % x.dim()
    if of_one_axis or axis == x.dim() - 1:
        return function(x, axis)
    return function(x.flatten(axis), axis).reshape(x.shape)


def _gemm(inputs: list[Any], attributes: Attributes) -> Tensor:
    a = inputs[0].mT if attributes.get("transA", 0) else inputs[0]
    b = inputs[1].mT if attributes.get("transB", 0) else inputs[1]
    result = attributes.get("alpha", 1.0) * (a @ b)
    return result + attributes.get("beta", 1.0) * inputs[2] if len(inputs) > 2 and inputs[2] is not None else result


def _layer_norm(inputs: list[Any], attributes: Attributes) -> Tensor:
    x = inputs[0]
    axis = attributes.get("axis", -1) % x.dim()
    bias = inputs[2] if len(inputs) > 2 else None
    return F.layer_norm(x, x.shape[axis:], inputs[1], bias, attributes.get("epsilon", 1e-5))


def _instance_norm(inputs: list[Any], attributes: Attributes) -> Tensor:
    return F.instance_norm(inputs[0], weight=inputs[1], bias=inputs[2], eps=attributes.get("epsilon", 1e-5))


def _batch_norm(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, weight, bias, mean, variance = inputs[:5]
    return F.batch_norm(x, mean, variance, weight, bias, eps=attributes.get("epsilon", 1e-5))


def _group_norm(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, groups = inputs[0], attributes["num_groups"]
    each = x.shape[1] // groups
    # Before version 21 there was one weight for each group.
    weight, bias = (value if value.numel() != groups else value.repeat_interleave(each) for value in inputs[1:3])
    return F.group_norm(x, groups, weight, bias, attributes.get("epsilon", 1e-5))


def _rms_norm(inputs: list[Any], attributes: Attributes) -> Tensor:
    x = inputs[0]
    axis = attributes.get("axis", -1) % x.dim()
    return F.rms_norm(x, x.shape[axis:], inputs[1], attributes.get("epsilon", 1e-5))


def _lp_norm(inputs: list[Any], attributes: Attributes) -> Tensor:
    x = inputs[0]
    return x / torch.linalg.vector_norm(x, attributes.get("p", 2), attributes.get("axis", -1), keepdim=True)


def _modulo(inputs: list[Any], attributes: Attributes) -> Tensor:
    function = torch.fmod if attributes.get("fmod", 0) else torch.remainder
    return _broadcast(function)(inputs, attributes)


def _cumulative_sum(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, axis = inputs[0], integers(inputs[1])[0]
    backwards = attributes.get("reverse", 0)
    x = x.flip(axis) if backwards else x
    total = x.cumsum(axis) - (x if attributes.get("exclusive", 0) else 0)
    return total.flip(axis) if backwards else total


def _gelu(inputs: list[Any], attributes: Attributes) -> Tensor:
    return F.gelu(inputs[0], approximate=text(attributes.get("approximate", "none")))


def _hard_sigmoid(inputs: list[Any], attributes: Attributes) -> Tensor:
    return torch.clamp(inputs[0] * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5), 0, 1)


TENSOR_OPERATORS: dict[str, Operator] = {
    **IMAGE_OPERATORS,
    **PICKING_OPERATORS,
    "Add": _broadcast(lambda a, b: a + b),
    "Sub": _broadcast(lambda a, b: a - b),
    "Mul": _broadcast(lambda a, b: a * b),
    "Div": _broadcast(lambda a, b: a / b),
    "Pow": _broadcast(lambda a, b: a**b),
    "Max": _broadcast(_extreme(torch.maximum, "min")),
    "Min": _broadcast(_extreme(torch.minimum, "max")),
    "Sum": _broadcast(lambda a, b: a + b),
    "Equal": _broadcast(lambda a, b: a == b),
    "Less": _broadcast(lambda a, b: a < b),
    "LessOrEqual": _broadcast(lambda a, b: a <= b),
    "Greater": _broadcast(lambda a, b: a > b),
    "GreaterOrEqual": _broadcast(lambda a, b: a >= b),
    "And": _broadcast(lambda a, b: a & b),
    "Or": _broadcast(lambda a, b: a | b),
    "Xor": _broadcast(lambda a, b: a ^ b),
    "Mod": _modulo,
    "Mean": lambda inputs, _: reduce(lambda a, b: a + b, inputs) / len(inputs),
    "Abs": _pointwise(torch.abs),
    "Neg": _pointwise(torch.neg),
    "Sqrt": _pointwise(torch.sqrt),
    "Reciprocal": _pointwise(torch.reciprocal),
    "Exp": _pointwise(torch.exp),
    "Log": _pointwise(torch.log),
    "Sin": _pointwise(torch.sin),
    "Cos": _pointwise(torch.cos),
    "Tan": _pointwise(torch.tan),
    "Atan": _pointwise(torch.atan),
    "Sinh": _pointwise(torch.sinh),
    "Cosh": _pointwise(torch.cosh),
    "Erf": _pointwise(torch.erf),
    "IsInf": _pointwise(torch.isinf),
    "IsNaN": _pointwise(torch.isnan),
    "Floor": _pointwise(torch.floor),
    "Ceil": _pointwise(torch.ceil),
    "Round": _pointwise(torch.round),
    "Sign": _pointwise(torch.sign),
    "Relu": _pointwise(torch.relu),
    "Sigmoid": _pointwise(torch.sigmoid),
    "Tanh": _pointwise(torch.tanh),
    "Softplus": _pointwise(F.softplus),
    "Softsign": _pointwise(F.softsign),
    "Selu": _pointwise(F.selu),
    "Celu": lambda inputs, attributes: F.celu(inputs[0], attributes.get("alpha", 1.0)),
    "Swish": lambda inputs, attributes: inputs[0] * torch.sigmoid(inputs[0] * attributes.get("alpha", 1.0)),
    "ThresholdedRelu": lambda inputs, attributes: F.threshold(inputs[0], attributes.get("alpha", 1.0), 0.0),
    "Mish": _pointwise(F.mish),
    "HardSwish": _pointwise(F.hardswish),
    "HardSigmoid": _hard_sigmoid,
    "Not": _pointwise(torch.logical_not),
    "Identity": lambda inputs, _: inputs[0],
    "Dropout": lambda inputs, _: inputs[0],
    "LeakyRelu": lambda inputs, attributes: F.leaky_relu(inputs[0], attributes.get("alpha", 0.01)),
    "Elu": lambda inputs, attributes: F.elu(inputs[0], attributes.get("alpha", 1.0)),
    "PRelu": _prelu,
    "Clip": _clip,
    "Gelu": _gelu,
    "Softmax": _softmax,
    "LogSoftmax": lambda inputs, attributes: _softmax(inputs, attributes, F.log_softmax),
    "Cast": lambda inputs, attributes: inputs[0].to(_DTYPES[attributes["to"]]),
    "MatMul": lambda inputs, _: inputs[0] @ inputs[1],
    "Gemm": _gemm,
    "Einsum": lambda inputs, attributes: torch.einsum(text(attributes["equation"]), *inputs),
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMin": _reduction(torch.amin),
    "ReduceProd": _reduction(_product),
    "ReduceL1": _reduction(lambda x, **axes: x.abs().sum(**axes)),
    "ReduceL2": _reduction(torch.linalg.vector_norm),
    "ReduceSumSquare": _reduction(lambda x, **axes: x.square().sum(**axes)),
    "ReduceLogSum": _reduction(lambda x, **axes: x.sum(**axes).log()),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "CumSum": _cumulative_sum,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp_norm,
    "RMSNormalization": _rms_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "BatchNormalization": _batch_norm,
}
"""What each operator makes of tensors; operators with several outputs return a sequence."""
