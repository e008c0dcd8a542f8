"""Trainable quantized convolutions: what every method plugs its quantizers into.

Each quantized convolution has its own activation quantizer directly before it, unlike the official code of PAMS and
DDTB, where the first convolution of each block reads an unquantized tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.quantization.model import FrozenLayer
from odm_deploy.quantization.weights import WeightCodes


class ActivationQuantizer(nn.Module, ABC):
    """Puts a layer's input on a grid. Life: `observe` float inputs, `initialize` once, then train."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    pads_before_quantizing: bool = False
    """Whether zero is not a level, so that the border has to be padded before quantizing."""

    @abstractmethod
    def observe(self, x: Tensor) -> None:
        """Take statistics of one calibration batch, float32 [N, C, H, W], from the float network."""

    @abstractmethod
    def initialize(self) -> None:
        """Set the parameters from what was observed."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Levels of `x`: float32, same shape."""

    def transform(self, x: Tensor) -> Tensor:
        """What happens to `x` before it is quantized; losses on features see the result. Nothing by default."""
        return x

    def project(self) -> None:
        """Bring the parameters back to where they mean something, after each optimizer step."""

    @abstractmethod
    def grid(self) -> Grid:
        """The static grid this quantizer now is.

        Raises:
            InputError: it is not one; the line says why.
        """


class WeightQuantizer(nn.Module, ABC):
    """Puts a layer's weights on levels that are integers times a scale."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """Levels of `weight`: float32 [O, ...], differentiable."""

    def project(self) -> None:
        """Bring the parameters back to where they mean something, after each optimizer step."""

    @abstractmethod
    def codes(self, weight: Tensor) -> WeightCodes:
        """The integer codes and scale whose product `forward` returns.

        Raises:
            InputError: there are none; the line says why.
        """


class TrainableConv2d(nn.Module):
    """A convolution with fake-quantized input and weights: float [N, I, H, W] -> float32 [N, O, H', W'].

    State-dict keys of weight and bias are those of the convolution it replaces.
    """

    def __init__(
        self, name: str, conv: nn.Conv2d, activation: ActivationQuantizer, weight_quantizer: WeightQuantizer
    ) -> None:
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise InputError(f"cannot quantize {name}", why=f"padding {conv.padding!r}, mode {conv.padding_mode!r}")
        super().__init__()
        self.name = name
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.activation = activation
        self.weight_quantizer = weight_quantizer
        self.calibrating = False
        # (input of the quantizer, its output) of the latest forward; kept only while `recording`.
        self.recording = False
        self.recorded: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Quantize input and weights and convolve; as a plain float convolution while calibrating."""
        padding: tuple[int, ...] = tuple(self.padding)
        if self.calibrating:
            self.activation.observe(x)
            return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        x = self.activation.transform(x)
        if self.activation.pads_before_quantizing and any(padding):
            vertical, horizontal = padding
            x = F.pad(x, (horizontal, horizontal, vertical, vertical))
            padding = (0, 0)
        levels = self.activation(x)
        if self.recording:
            self.recorded = (x, levels)
        weight = self.weight_quantizer(self.weight)
        # Back to float32 under autocast: residual sums in bfloat16 would lose a bit a block.
        return F.conv2d(levels, weight, self.bias, self.stride, padding, self.dilation, self.groups).float()

    def freeze(self) -> FrozenLayer:
        """This layer as integers.

        Raises:
            InputError: it cannot be one; the line says why.
        """
        try:
            weight, grid = self.weight_quantizer.codes(self.weight.detach()), self.activation.grid()
        except InputError as error:
            raise InputError(f"cannot freeze {self.name}", why=str(error)) from None
        return FrozenLayer(weight, grid, None if self.bias is None else self.bias.detach().clone())
