"""EDSR: Enhanced Deep Residual Networks for Single Image Super-Resolution (Lim et al., CVPRW 2017).

State-dict keys are those of the authors' PyTorch code: `head.0, body.{i}.body.{0,2}, body.{blocks}, tail.0.{...},
tail.1`, and the frozen mean shifts `sub_mean, add_mean`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.networks.base import NetworkConfig, Region, SuperResolutionNetwork

DIV2K_MEAN_RGB = (0.4488, 0.4371, 0.4040)
"""Mean colour of DIV2K, as a share of 255 (Lim et al., Sec. 4)."""

MEAN_UNIT = 0.125
"""What the mean colour is rounded to where sums have to be exact, in grey levels."""

EXACT_MEAN = 110
"""Grey level that an exact network subtracts from every colour, in place of the mean: images then keep all of their 256
values on an 8-bit grid. Even, like all zero points of such grids (`Grid.from_range`)."""

EXACT_MEAN_UNIT = 2.0**-6
"""What the mean that an exact network adds in the end is rounded to, in grey levels."""


@dataclass(frozen=True)
class EdsrConfig(NetworkConfig):
    """Hyper-parameters of EDSR; the defaults are EDSR-baseline's, 256 features / 32 blocks / 0.1 are the full size."""

    features: int = 64
    """Channels of every body convolution."""
    blocks: int = 16
    """Residual blocks."""
    residual_scale: float = 1.0
    """Factor on each block's residual; 0.1 in the full-size network. Not visible in a state dict."""

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4):
            raise InputError("no such EDSR", why=f"scale {self.scale}", fix="EDSR upscales by 2, 3 or 4")
        if self.features < 1 or self.blocks < 1:
            raise InputError("no such EDSR", why=f"{self.features} features, {self.blocks} blocks")

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], scale: int) -> Self:
        """Features and blocks read off the keys; `residual_scale` is 0.1 from 256 features on, as published.

        Raises:
            InputError: the keys are not EDSR's, or belong to another scale.
        """
        if "head.0.weight" not in state or "tail.1.weight" not in state:
            raise InputError(
                "not an EDSR state dict",
                why=f"no head.0.weight, tail.1.weight among its {len(state)} keys ({', '.join(list(state)[:3])} ..)",
                fix="name the right --network",
            )
        found = _scale_of(state)
        if found != scale:
            raise InputError(
                f"these are weights of EDSR x{found}",
                why=f"scale {scale} was asked for",
                fix=f"use --scale {found}, or other weights",
            )
        _check_mean_shifts(state)
        features = state["head.0.weight"].shape[0]
        blocks = len({match[1] for key in state if (match := re.match(r"body\.(\d+)\.body\.", key))})
        return cls(scale, features, blocks, residual_scale=0.1 if features >= 256 else 1.0)


def _check_mean_shifts(state: Mapping[str, Tensor]) -> None:
    """Refuse mean shifts that also mix or scale colours: `MeanShift` only adds.

    Raises:
        InputError: a frozen 1x1 convolution that is not the identity.
    """
    for key in ("sub_mean.weight", "add_mean.weight"):
        weight = state.get(key)
        if weight is not None and not torch.equal(weight.reshape(3, -1).float(), torch.eye(3)):
            raise InputError(
                f"unsupported {key}",
                why=f"it is not the identity but {weight.flatten().tolist()}",
                fix="only mean shifts with unit standard deviation are known",
            )


def _scale_of(state: Mapping[str, Tensor]) -> int:
    """The scale an EDSR upsampler was made for: x4 has two stages, x3 a ninefold one."""
    if "tail.0.2.weight" in state:
        return 4
    first = state.get("tail.0.0.weight")
    return 3 if first is not None and first.shape[0] == 9 * first.shape[1] else 2


class EDSR(SuperResolutionNetwork):
    """EDSR without batch normalisation, float32 [N, 3, H, W] -> [N, 3, scale*H, scale*W], both RGB in 0..255."""

    name = "edsr"
    config: EdsrConfig

    def __init__(self, config: EdsrConfig) -> None:
        super().__init__()
        self.config = config  # pyright: ignore[reportIncompatibleVariableOverride] - only ever its own kind
        features = config.features
        self.sub_mean = MeanShift(-1.0)
        self.add_mean = MeanShift(+1.0)
        self.head = nn.Sequential(conv3x3(3, features))
        blocks = [ResidualBlock(features, config.residual_scale) for _ in range(config.blocks)]
        self.body = nn.Sequential(*blocks, conv3x3(features, features))
        self.tail = nn.Sequential(upsampler(config.scale, features), conv3x3(features, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Upscale."""
        shallow = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.body(shallow) + shallow))

    @torch.no_grad()
    def round_float_edges(self) -> None:
        """Put the mean colour and the head's weights and biases on dyadic grids on which no sum over pixels rounds.

        The mean moves by at most 1/16 of a grey level, which the head's bias makes up for (but for the outermost
        pixels, where zeros are padded); weights move by up to 2^-10.
        """
        head = self.head[0]
        assert isinstance(head, nn.Conv2d) and head.bias is not None
        mean = -self.sub_mean.bias
        near = torch.round(mean / MEAN_UNIT) * MEAN_UNIT
        largest = head.weight.abs().flatten(1).sum(1).max() * 255.0 / MEAN_UNIT
        # One bit of slack for the bias, one for weights that round up.
        unit = 2.0 ** -math.floor(22 - math.log2(float(largest)))
        head.weight.copy_(torch.round(head.weight / unit) * unit)
        bias = head.bias.double() + head.weight.double().sum((2, 3)) @ (near - mean).double()
        head.bias.copy_(torch.round(bias / (unit * MEAN_UNIT)) * (unit * MEAN_UNIT))
        self.sub_mean.bias.copy_(-near)

    @torch.no_grad()
    def make_exact(self) -> None:
        """Subtract one whole grey level instead of the mean colour, and let the blocks' factor be part of the weights.

        The head's bias makes up for the difference of at most 7 levels; only where zeros are padded, at the outermost
        pixels, does it remain.
        """
        head = self.head[0]
        assert isinstance(head, nn.Conv2d) and head.bias is not None
        moved = EXACT_MEAN + self.sub_mean.bias.double()
        head.bias.copy_(head.bias.double() + head.weight.double().sum((2, 3)) @ moved)
        self.sub_mean.bias.fill_(-EXACT_MEAN)
        self.add_mean.bias.copy_(torch.round(self.add_mean.bias / EXACT_MEAN_UNIT) * EXACT_MEAN_UNIT)
        for block in self.modules():
            if not isinstance(block, ResidualBlock):
                continue
            last = block.body[-1]
            assert isinstance(last, nn.Conv2d) and last.bias is not None
            last.weight.mul_(block.residual_scale)
            last.bias.mul_(block.residual_scale)
            block.residual_scale = 1.0
        self.config = dataclasses.replace(self.config, residual_scale=1.0)  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def pixel_grid(self) -> Grid:
        """8-bit images less `EXACT_MEAN`."""
        return Grid(1.0, EXACT_MEAN, 8)

    def region_of(self, layer: str) -> Region:
        """`head.0` is the head, the blocks are the body, `body.{blocks}` is its end, `tail` the tail."""
        part, *rest = layer.split(".")
        if part == "head":
            return Region.HEAD
        if part == "tail":
            return Region.TAIL
        if part == "body":
            return Region.BODY_END if rest[:1] == [str(self.config.blocks)] else Region.BODY
        return super().region_of(layer)


class ResidualBlock(nn.Module):
    """x + residual_scale * conv(relu(conv(x))), [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, features: int, residual_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(features, features), nn.ReLU(), conv3x3(features, features))
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual."""
        residual = self.body(x)
        return x + (residual if self.residual_scale == 1.0 else residual * self.residual_scale)


class MeanShift(nn.Module):
    """Subtract (sign -1) or add (+1) the mean colour; [N, 3, H, W] -> [N, 3, H, W].

    The public code writes this as a frozen 1x1 convolution with an identity weight, so state dicts carry one. Here only
    its bias is added: a runtime then has three additions per pixel to do, and none can mix channels.
    """

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(3).reshape(3, 3, 1, 1))
        self.register_buffer("bias", sign * 255.0 * torch.tensor(DIV2K_MEAN_RGB))

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Shift."""
        return x + self.bias.reshape(1, 3, 1, 1)


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution with bias that keeps the image size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def upsampler(scale: int, features: int) -> nn.Sequential:
    """Sub-pixel convolutions: two x2 stages for x4, one stage for x2 and x3."""
    factors = [2, 2] if scale == 4 else [scale]
    stages: list[nn.Module] = []
    for factor in factors:
        stages += [conv3x3(features, features * factor**2), nn.PixelShuffle(factor)]
    return nn.Sequential(*stages)
