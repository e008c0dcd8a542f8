"""What a quantizer is: the interface between methods and the layers that they quantize, and what quantizers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from odm_deploy.grid import Grid
from odm_deploy.quantization.gates import FrozenGate
from odm_deploy.quantization.layers import ChannelOffsets
from odm_deploy.quantization.weights import WeightCodes

Quantizable = nn.Conv2d | nn.Linear
"""The kinds of float layers that have a trainable counterpart."""

Kind = Literal["ranges", "steps", "weight_steps", "clipping", "offsets", "gates"]
"""The kinds of parameters that quantizers learn: bounds of activations, steps of activations and of weights, clipping
scales of weights, shifts and gains per channel, gates per image."""


@dataclass(frozen=True)
class Overhead:
    """What a quantizer costs besides the range and the rounding that all have (`training.overhead`)."""

    storage_bits: int = 0
    """Of codes and of float numbers that make up its function."""
    scales: int = 0
    """Float numbers that codes are multiplied with."""
    bit_operations: int = 0
    """For one image."""


class _Quantizer(nn.Module, ABC):
    """What the two kinds of quantizers share."""

    def project(self) -> None:
        """Bring the parameters back to where they mean something, after each optimizer step."""

    @classmethod
    def project_all(cls, quantizers: Sequence[Any]) -> None:
        """Project several of this class; overridden where one operation does it for all."""
        for quantizer in quantizers:
            quantizer.project()


class ActivationQuantizer(_Quantizer):
    """Puts a layer's input on a grid. Life: `observe` float inputs, `initialize` once, then train."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    pads_before_quantizing: bool = False
    """Whether zero is not a level, so that the border has to be padded before quantizing."""

    def kind_of(self, parameter: str) -> Kind:
        """What the parameter of that name within this module is; each kind may have a learning rate of its own."""
        return "ranges"

    @abstractmethod
    def observe(self, x: Tensor) -> None:
        """Take statistics of one calibration batch (float32, any shape) of the float network."""

    @abstractmethod
    def initialize(self) -> None:
        """Set the parameters from what was observed."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Levels of `x`: float32, same shape."""

    def transform(self, x: Tensor) -> Tensor:
        """What happens to `x` before it is quantized; losses on features see the result. Nothing by default."""
        return x

    def offsets(self) -> ChannelOffsets | None:
        """What `transform` does, as constants; None: nothing."""
        return None

    def gate_form(self) -> FrozenGate | None:
        """What scales the range for each image, as constants; None: nothing. With it there is no `grid`."""
        return None

    def overhead(self, pixels: int) -> Overhead:
        """What it costs on an input of so many pixels a channel, besides range and rounding. Nothing by default."""
        return Overhead()

    @abstractmethod
    def grid(self) -> Grid:
        """The static grid this quantizer now is.

        Raises:
            InputError: it is not one; the line says why.
        """


class WeightQuantizer(_Quantizer):
    """Puts a layer's weights on levels that are integers times a scale."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def kind_of(self, parameter: str) -> Kind:
        """What the parameter of that name within this module is; each kind may have a learning rate of its own."""
        return "clipping"

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """Levels of `weight`: float32 [O, ...], differentiable."""

    @abstractmethod
    def codes(self, weight: Tensor) -> WeightCodes:
        """The integer codes and scale whose product `forward` returns.

        Raises:
            InputError: there are none; the line says why.
        """


class Quantizers(Protocol):
    """Who gives layers their quantizers: the methods."""

    def activation_quantizer(self, bits: int, layer: Quantizable) -> ActivationQuantizer:
        """A fresh quantizer for the input of `layer`."""
        ...

    def weight_quantizer(self, bits: int, layer: Quantizable) -> WeightQuantizer:
        """A fresh quantizer for the weights of `layer`."""
        ...


def straight_through(x: Tensor, levels: Tensor) -> Tensor:
    """The values of `levels` with the gradient of `x`, clamps included."""
    return x + (levels - x).detach()


def weight_rows(weight: Tensor, *, per_channel: bool) -> Tensor:
    """What shares one scale: float32 [O, K] per output channel, else [1, all weights]; detached."""
    return weight.detach().float().reshape(weight.shape[0] if per_channel else 1, -1)


def per_row(values: Tensor, weight: Tensor) -> Tensor:
    """A value a row of `weight_rows`, shaped to broadcast to `weight`."""
    return values.reshape(-1, *[1] * (weight.dim() - 1))


class PixelGrid(ActivationQuantizer):
    """The grid that holds 8-bit images as they are, `SuperResolutionNetwork.pixel_grid`; nothing of it is learned."""

    def __init__(self, pixel_grid: Grid) -> None:
        super().__init__(pixel_grid.bits)
        self._grid = pixel_grid

    def observe(self, x: Tensor) -> None:
        """Images need no statistics."""

    def initialize(self) -> None:
        """Nothing to set."""

    def forward(self, x: Tensor) -> Tensor:
        """Levels of `x`."""
        grid = self._grid
        codes = torch.clamp(torch.round(x / grid.scale) + grid.zero_point, 0, grid.code_max)
        return (codes - grid.zero_point) * grid.scale

    def grid(self) -> Grid:
        """The static grid."""
        return self._grid


class SavedFlag(nn.Module):
    """A fact about a layer that a resumed run has to know.

    It is a buffer, so that it is saved; and a plain bool, so that asking costs nothing: reading a buffer waits for
    the device, breaks a compiled graph in two, and cannot be part of a CUDA graph.
    """

    value: Tensor

    def __init__(self, value: bool) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(value))
        self.is_set = value
        self.register_load_state_dict_post_hook(_read)

    def set(self, value: bool) -> None:
        """Make it `value`."""
        if value != self.is_set:
            self.value.fill_(value)
            self.is_set = value


def _read(flag: SavedFlag, _keys: Any) -> None:
    flag.is_set = bool(flag.value)
