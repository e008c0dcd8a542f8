"""A grid that a gate scales for each image (DDTB, Zhong et al., ECCV 2022), in a form that integer engines run exactly.

The gate reads the means of a layer's input channels, and gives two factors (b_l, b_u) for the bounds l and u. With

    s = (b_u u - b_l l) / (2^b - 1)      z = clamp(round(-b_l l / s), 0, 2^b - 1)

a code minus its zero point is v = clamp(round(x / s), -z, 2^b - 1 - z), and the convolution of levels s v with weights
is s times that of v, because s is one number an image:

    x -> Div(s) -> Clip(-z, 2^b - 1 - z) -> Q, scale 1 -> int conv, no bias -> Mul(s) -> Add(bias)

So the quantizer that engines see is static. Its codes have a bit more than the layer's, because z differs between
images. "Image" is the first axis of the input: windows, where a network's linear layers see windows (SwinIR).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy.bitpacking import pack_bits, unpack_bits
from odm_deploy.errors import InputError
from odm_deploy.grid import MAX_BITS, MIN_BITS, Grid

_CODES = ("squeeze", "excite")
_CODE_BITS, _LARGEST_INDEX = 2, 2
_SMALLEST_STEP = 1e-8
_LAST_LEVEL = 3
"""Steps between the smallest and the largest value that a gate's own 2-bit quantizers see."""


@dataclass(frozen=True)
class FrozenGate:
    """What training decided for the gate of one layer.

    Raises:
        InputError: tensors that do not fit each other, numbers that are not finite, bounds not around zero.
    """

    squeeze: Tensor
    """int8 [H, C], -1, 0 or 1: weights from channel means to hidden features."""
    gain: Tensor
    """float32 [H]: scale of those weights and of the normalisation that follows."""
    shift: Tensor
    """float32 [H]: the normalisation's shift, before the ReLU."""
    excite: Tensor
    """int8 [2, H], -1, 0 or 1: weights from hidden features to the logits of (b_u, b_l)."""
    scale: float
    """Scale of those."""
    lower: float
    """L <= 0, in feature units, where the gate says 1."""
    upper: float
    """U >= 0 likewise; u > l."""
    bits: int
    """Width b of the codes of one image."""

    def __post_init__(self) -> None:
        hidden, channels = self.squeeze.shape
        shapes = {"gain": (hidden,), "shift": (hidden,), "excite": (2, hidden)}
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise InputError("a gate is unusable", why=f"{name} is {list(getattr(self, name).shape)}, not {shape}")
        numbers = torch.cat([self.gain, self.shift, torch.tensor([self.scale, self.lower, self.upper])])
        if not channels or not bool(torch.isfinite(numbers).all()):
            raise InputError("a gate is unusable", why="a number of it is not finite, or it reads no channel")
        if not self.lower <= 0.0 <= self.upper or self.lower == self.upper:
            raise InputError("a gate is unusable", why=f"its bounds are {self.lower} and {self.upper}")
        if not MIN_BITS <= self.bits < MAX_BITS:
            raise InputError("a gate is unusable", why=f"codes of {self.bits} bits", fix="use 2 to 7")

    @property
    def grid(self) -> Grid:
        """The static grid of what the gate makes of its layer's input: whole numbers -(2^b - 1) to 2^b - 1."""
        return Grid(1.0, 2**self.bits, self.bits + 1)

    @property
    def stored_bits(self) -> int:
        """What `model.pt` holds of it: two bits a weight, and floats."""
        floats = self.gain.numel() + self.shift.numel() + len((self.scale, self.lower, self.upper))
        return sum(8 * -(-codes.numel() // 4) for codes in (self.squeeze, self.excite)) + 32 * floats

    def to_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for `model.pt`."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        for key in _CODES:
            codes: Tensor = plain[key]
            packed = pack_bits((codes.cpu() + 1).to(torch.uint8).numpy(), _CODE_BITS)
            plain[key] = {"packed": torch.from_numpy(packed), "shape": list(codes.shape)}
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> FrozenGate:
        """The gate `to_dict` described.

        Raises:
            InputError: missing or unknown keys, or values of another kind.
        """
        if set(plain) != {field.name for field in fields(cls)}:
            raise InputError("not a gate", why=f"keys {sorted(map(str, plain))[:9]}")
        for key in ("gain", "shift"):
            if not isinstance(plain[key], Tensor) or plain[key].dtype != torch.float32 or plain[key].dim() != 1:
                raise InputError("not a gate", why=f"{key} is no float32 vector")
        numbers = [plain[key] for key in ("scale", "lower", "upper")]
        if not all(isinstance(number, float) for number in numbers) or type(plain["bits"]) is not int:
            raise InputError("not a gate", why="a number of another type")
        values: dict[str, Any] = {**plain, **{key: _unpacked(plain[key], key) for key in _CODES}}
        return cls(**values)


def _unpacked(stored: Mapping[str, Any], key: str) -> Tensor:
    rows, columns = (int(size) for size in stored["shape"])
    index = unpack_bits(stored["packed"].numpy(), _CODE_BITS, rows * columns)
    if index.max(initial=0) > _LARGEST_INDEX:
        raise InputError("not a gate", why=f"{key} is not ternary")
    return torch.from_numpy(index.astype(np.int8) - 1).reshape(rows, columns)


class PerImageGrid(nn.Module):
    """Puts an image in steps of its own grid. Nothing of it is in state dicts: `model.pt` has it with the layer.

    Args:
        gate: what training decided.
        channels_last: whether channels are the input's last axis (linear layers) or its second one.
    """

    squeeze: Tensor
    gain: Tensor
    shift: Tensor
    excite: Tensor

    def __init__(self, gate: FrozenGate, *, channels_last: bool) -> None:
        super().__init__()
        self.frozen, self.channels_last = gate, channels_last
        for name, value in (
            ("squeeze", gate.squeeze.float()),
            ("gain", gate.gain.clone()),
            ("shift", gate.shift.clone()),
            ("excite", gate.excite.float() * gate.scale),
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` [N, C, ...] or [N, ..., C] in steps, bounded; and the step, [N, 1, ..., 1]."""
        pixels = tuple(range(1, x.dim() - 1)) if self.channels_last else tuple(range(2, x.dim()))
        pooled = x.mean(pixels) if pixels else x
        hidden = F.relu(_product(_levels(pooled), self.squeeze) * self.gain + self.shift)
        factors = 2.0 * torch.sigmoid(_product(_levels(hidden), self.excite))
        upper, lower = (factors[:, index].reshape(-1, *[1] * (x.dim() - 1)) for index in (0, 1))
        upper, lower = upper * self.frozen.upper, lower * self.frozen.lower
        last = 2**self.frozen.bits - 1
        step = ((upper - lower) / last).clamp(min=_SMALLEST_STEP)
        zero = torch.clamp(torch.round(-lower / step), 0, last)
        return torch.minimum(torch.maximum(x / step, -zero), last - zero), step


def _levels(x: Tensor) -> Tensor:
    """Multiples of a third of the distance between the extremes of each row; [N, C]."""
    extent = x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
    step = extent.clamp(min=_SMALLEST_STEP) / _LAST_LEVEL
    return torch.round(x / step) * step


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """X W^T, [N, I] -> [N, O]. Not as a matrix product, whose operands GPUs may round (TF32)."""
    return (x.unsqueeze(1) * weight).sum(2)
