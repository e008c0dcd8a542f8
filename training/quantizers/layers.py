"""Trainable quantized layers: what every method plugs its quantizers into.

Each quantized layer has its own activation quantizer directly before it, unlike the official code of PAMS and
DDTB, where the first convolution of each block reads an unquantized tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.power_of_two import round_to_multiples
from training.quantizers.base import ActivationQuantizer, Quantizable, WeightQuantizer


class TrainableLayer(nn.Module, ABC):
    """A layer with fake-quantized input and weights.

    State-dict keys of weight and bias are those of the layer it replaces.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, name: str, layer: Quantizable, activation: ActivationQuantizer, weight_quantizer: WeightQuantizer
    ) -> None:
        super().__init__()
        self.name = name
        self.weight, self.bias = layer.weight, layer.bias
        self.activation = activation
        self.weight_quantizer = weight_quantizer
        self.calibrating = False
        # Exact models have biases that are multiples of what a product of codes stands for.
        self.rounds_bias = False
        # (input of the quantizer, its output) of the latest forward; kept only while `recording`.
        self.recording = False
        self.recorded: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def combine(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, padded: bool) -> Tensor:
        """The layer's product of input and weights plus bias; `padded`: the border is part of `x` already."""

    def used_bias(self) -> Tensor | None:
        """The bias, rounded as in `exact.freeze` where the model is to be exact."""
        if self.bias is None or not self.rounds_bias:
            return self.bias
        scale = self.weight_quantizer.codes(self.weight.detach()).scale.to(self.bias.device)
        return _RoundToMultiples.apply(self.bias, scale.double() * self.activation.grid().scale)  # type: ignore[no-any-return]

    def pad(self, x: Tensor) -> Tensor:
        """`x` with the layer's border of zeros around it."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Quantize input and weights and multiply; as a plain float layer while calibrating."""
        if self.calibrating:
            self.activation.observe(x)
            return self.combine(x, self.weight, self.bias, padded=False)
        x = self.activation.transform(x)
        padded = self.activation.pads_before_quantizing
        if padded:
            x = self.pad(x)
        levels = self.activation(x)
        if self.recording:
            self.recorded = (x, levels)
        # Back to float32 under autocast: residual sums in bfloat16 would lose a bit a block.
        return self.combine(levels, self.weight_quantizer(self.weight), self.used_bias(), padded=padded).float()

    def freeze(self) -> FrozenLayer:
        """This layer as integers.

        Raises:
            InputError: it cannot be one; the line says why.
        """
        try:
            weight, gate = self.weight_quantizer.codes(self.weight.detach()), self.activation.gate_form()
            grid = self.activation.grid() if gate is None else gate.grid
        except InputError as error:
            raise InputError(f"cannot freeze {self.name}", why=str(error)) from None
        bias = self.used_bias()
        bias = None if bias is None else bias.detach().clone()
        return FrozenLayer(weight, grid, bias, self.activation.offsets(), gate)


class TrainableConv2d(TrainableLayer):
    """A convolution: float [N, I, H, W] -> float32 [N, O, H', W']."""

    def __init__(
        self, name: str, layer: Quantizable, activation: ActivationQuantizer, weight_quantizer: WeightQuantizer
    ) -> None:
        assert isinstance(layer, nn.Conv2d)
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise InputError(f"cannot quantize {name}", why=f"padding {layer.padding!r}, mode {layer.padding_mode!r}")
        super().__init__(name, layer, activation, weight_quantizer)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        self.padding: tuple[int, ...] = tuple(layer.padding)

    def pad(self, x: Tensor) -> Tensor:
        """`x` with the convolution's border of zeros around it."""
        vertical, horizontal = self.padding
        return F.pad(x, (horizontal, horizontal, vertical, vertical))

    def combine(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, padded: bool) -> Tensor:
        """Convolve."""
        return F.conv2d(x, weight, bias, self.stride, 0 if padded else self.padding, self.dilation, self.groups)


class TrainableLinear(TrainableLayer):
    """A linear layer: float [..., I] -> float32 [..., O]."""

    def combine(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, padded: bool) -> Tensor:
        """Multiply."""
        return F.linear(x, weight, bias)


class _RoundToMultiples(torch.autograd.Function):
    """The nearest multiple of a unit, the gradient passed straight through."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, unit: Tensor) -> Tensor:
        return round_to_multiples(values, unit)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None
