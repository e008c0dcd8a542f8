"""Frozen quantized layers: integer weight codes, a static grid on the input, a float bias.

They are the reference every runtime is compared with, and what `lowering` exports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy.bitpacking import pack_bits, unpack_bits
from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.quantization.fake_quant import dequantize_weight, fake_quantize
from odm_deploy.quantization.gates import FrozenGate, PerImageGrid
from odm_deploy.quantization.weights import WeightCodes

OFFSET_BITS = 4
"""Width of the codes of offsets that have a step."""
OFFSET_CODE_LAST = 2 ** (OFFSET_BITS - 1) - 1
"""The largest of those codes; the smallest is its negative."""


@dataclass(frozen=True)
class ChannelOffsets:
    """What happens to every input channel of a layer before it is quantized: x* = (x + shift) * gain.

    QuantSR's redistribution and the selective offsets of ODM v1. Two constants in front of the quantizer, which engines
    fold into it.
    """

    shift: Tensor | None = None
    """float32 [C], in feature units; None: no shift."""
    gain: Tensor | None = None
    """float32 [C]; None: no gain."""
    shift_step: float | None = None
    """What shifts are -OFFSET_CODE_LAST to OFFSET_CODE_LAST times; None: they are any floats."""
    gain_step: float | None = None
    """The same for gains."""

    @property
    def has_codes(self) -> bool:
        """Whether either has a step."""
        return self.shift_step is not None or self.gain_step is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for `model.pt`: packed codes where there is a step."""
        return {"shift": _packed(self.shift, self.shift_step), "gain": _packed(self.gain, self.gain_step)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ChannelOffsets:
        """The offsets `to_dict` described.

        Raises:
            InputError: numbers that are not finite.
        """
        (shift, shift_step), (gain, gain_step) = (_unpacked(plain[name], name) for name in ("shift", "gain"))
        return cls(shift, gain, shift_step, gain_step)


def _packed(values: Tensor | None, step: float | None) -> Any:
    if values is None or step is None:
        return values
    index = (torch.round(values / step) + OFFSET_CODE_LAST).to(torch.uint8)
    packed = torch.from_numpy(pack_bits(index.numpy(), OFFSET_BITS))
    return {"packed": packed, "channels": len(values), "step": step}


def _unpacked(stored: Any, name: str) -> tuple[Tensor | None, float | None]:
    step = None
    if isinstance(stored, Mapping):
        plain = cast("Mapping[str, Any]", stored)
        step = float(np.float32(plain["step"]))
        index = unpack_bits(plain["packed"].numpy(), OFFSET_BITS, int(plain["channels"]))
        stored = torch.from_numpy(index.astype(np.float32) - OFFSET_CODE_LAST) * step
    if stored is not None and not bool(torch.isfinite(stored).all()):
        raise InputError(f"a {name} is unusable", why="it is not finite")
    return stored, step


@dataclass(frozen=True)
class FrozenLayer:
    """What calibration or training decided for one layer."""

    weight: WeightCodes
    """Integer weights and their scale."""
    grid: Grid
    """Static grid of the layer's input."""
    bias: Tensor | None
    """float32 [O], or None."""
    offsets: ChannelOffsets | None = None
    """What happens to its input channels before they are quantized, or None."""
    gate: FrozenGate | None = None
    """What scales its range for each image, or None; `grid` is then the gate's."""


class QuantizedLayer(nn.Module):
    """A layer whose input lies on a static grid and whose weights are integer codes.

    Attributes:
        name: the layer's dotted name in its network.
        grid: the static grid of its input.
    """

    offset_shape: tuple[int, ...] = (-1, 1, 1)
    """How a value a channel has to be shaped to broadcast to the input."""
    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    shift: Tensor | None
    gain: Tensor | None
    typed: Tensor

    def __init__(self, name: str, frozen: FrozenLayer) -> None:
        super().__init__()
        self.name, self.grid = name, frozen.grid
        weight, bias, offsets = frozen.weight, frozen.bias, frozen.offsets or ChannelOffsets()
        self.weight_bits = weight.bits
        self._first, self._step = weight.first, weight.step
        self.register_buffer("codes", weight.codes.clone())
        self.register_buffer("scale", weight.scale.clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone().float())
        for key, value in (("shift", offsets.shift), ("gain", offsets.gain)):
            shaped = None if value is None else value.detach().clone().float().reshape(self.offset_shape)
            self.register_buffer(key, shaped)
        # For code that asks the module around its layers for a parameter, to learn their type and device.
        self.typed = nn.Parameter(torch.empty(0), requires_grad=False)
        channels_last = len(self.offset_shape) == 1
        self.gate = None if frozen.gate is None else PerImageGrid(frozen.gate, channels_last=channels_last)
        self._offset_steps = offsets.shift_step, offsets.gain_step
        # Set by `proof`: sees what arrives at the quantizer and may hand on something else. None otherwise.
        self.tap: Callable[[Tensor], Tensor] | None = None
        # Off where the question is what rounding its input costs (`tuning.sensitivity`).
        self.rounds_input = True

    @property
    def weight_codes(self) -> WeightCodes:
        """The integer weights with their scale."""
        return WeightCodes(self.codes, self.scale.float(), self.weight_bits, self._first, self._step)

    @property
    def weight(self) -> Tensor:
        """Real weights, in the dtype of the scale (float64 after `.double()`)."""
        return dequantize_weight(self.codes, self.scale, self.name)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Weight and bias, as the float layer has them: networks ask their layers for a type, a device, a shape."""
        del recurse, remove_duplicate
        dot = "." if prefix else ""
        for name, value in (("weight", self.weight), ("bias", self.bias)):
            if value is not None:
                yield f"{prefix}{dot}{name}", cast("nn.Parameter", value)

    def get_parameter(self, target: str) -> nn.Parameter:
        """Weight or bias, as the float layer has them."""
        value = dict(self.named_parameters()).get(target)
        return super().get_parameter(target) if value is None else value

    @property
    def offsets(self) -> ChannelOffsets | None:
        """What happens to its input channels first, if anything does."""
        shift, gain = self.shift, self.gain
        if shift is None and gain is None:
            return None
        flat_shift, flat_gain = (None if value is None else value.float().flatten() for value in (shift, gain))
        return ChannelOffsets(flat_shift, flat_gain, *self._offset_steps)

    def pad(self, x: Tensor) -> Tensor:
        """`x` with its border, where that has to be there before quantizing."""
        return x

    def offset(self, x: Tensor) -> Tensor:
        """`x` with its channels shifted and scaled."""
        if self.shift is not None:
            x = x + self.shift
        return x if self.gain is None else x * self.gain

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's product of an input, padded and quantized, and weights, plus a bias."""
        raise NotImplementedError

    def quantized_input(self, x: Tensor) -> Tensor:
        """`x`, offset, on this layer's grid."""
        x = self.offset(x)
        if self.tap is not None:
            x = self.tap(x)
        return fake_quantize(x, self.grid, self.name) if self.rounds_input else x

    def forward(self, x: Tensor) -> Tensor:
        """Quantize, multiply, add the bias."""
        if self.gate is None:
            return self.product(self.quantized_input(self.pad(x)), self.weight, self.bias)
        steps, step = self.gate(x)
        product = self.product(self.quantized_input(steps), self.weight, None) * step
        return product if self.bias is None else product + self.bias.reshape(self.offset_shape)


class QuantizedConv2d(QuantizedLayer):
    """A convolution on integer codes: float [N, I, H, W] -> float [N, O, H', W']."""

    def __init__(self, name: str, conv: nn.Conv2d, frozen: FrozenLayer) -> None:
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise InputError(
                f"cannot quantize {name}",
                why=f"padding {conv.padding!r}, mode {conv.padding_mode!r}",
                fix="only explicit zero padding keeps a padded border on the grid",
            )
        if frozen.offsets and frozen.grid.is_free and any(conv.padding):
            raise InputError(
                f"cannot quantize {name}", why="offsets in front of a free grid, whose border is not a level"
            )
        super().__init__(name, frozen)
        # For networks whose code asks its layers.
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.padding_mode = conv.kernel_size, conv.padding_mode
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups

    @property
    def _pads_first(self) -> bool:
        # Zero is no level of a free grid: it pads with the level nearest to it, before quantizing.
        return self.grid.is_free and any(self.padding)

    def pad(self, x: Tensor) -> Tensor:
        """`x` with its border, on free grids."""
        if not self._pads_first:
            return x
        vertical, horizontal = self.padding
        return F.pad(x, (horizontal, horizontal, vertical, vertical), value=self.grid.pad_value)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve, add the bias."""
        padding = (0, 0) if self._pads_first else self.padding
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)


class QuantizedLinear(QuantizedLayer):
    """A linear layer on integer codes: float [..., I] -> float [..., O]."""

    offset_shape = (-1,)

    def __init__(self, name: str, linear: nn.Linear, frozen: FrozenLayer) -> None:
        super().__init__(name, frozen)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply, add the bias."""
        return F.linear(x, weight, bias)


def quantized_layer(name: str, layer: nn.Module, frozen: FrozenLayer) -> QuantizedLayer:
    """The frozen counterpart of a float Conv2d or Linear.

    Raises:
        InputError: another kind of layer, or codes or offsets that are not shaped for it.
    """
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):
        raise InputError(f"cannot quantize {name}", why=f"it is a {type(layer).__name__}, not a Conv2d or Linear")
    shape = frozen.weight.codes.shape
    if shape != layer.weight.shape:
        raise InputError(f"codes do not fit {name}", why=f"{list(shape)} against {list(layer.weight.shape)}")
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    for values in (frozen.offsets.shift, frozen.offsets.gain) if frozen.offsets else ():
        if values is not None and values.shape != (channels,):
            raise InputError(f"offsets do not fit {name}", why=f"{list(values.shape)} for {channels} channels")
    if frozen.gate is not None and (frozen.gate.squeeze.shape[1] != channels or frozen.gate.grid != frozen.grid):
        raise InputError(f"a gate does not fit {name}", why=f"{channels} channels on {frozen.grid}")
    if isinstance(layer, nn.Conv2d):
        return QuantizedConv2d(name, layer, frozen)
    return QuantizedLinear(name, layer, frozen)
