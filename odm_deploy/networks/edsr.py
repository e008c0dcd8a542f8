"""EDSR: Enhanced Deep Residual Networks for Single Image Super-Resolution (Lim et al., CVPRW 2017).

State-dict keys are those of the authors' PyTorch code: `head.0, body.{i}.body.{0,2}, body.{blocks}, tail.0.{...},
tail.1`, and the frozen mean shifts `sub_mean, add_mean`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.networks.base import Region, SuperResolutionNetwork
from odm_deploy.networks.blocks import DIV2K_MEAN_RGB, Sum, conv3x3, upsampler
from odm_deploy.networks.config import NetworkConfig, count_numbers

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

    title: ClassVar[str] = "EDSR"
    scales: ClassVar[tuple[int, ...]] = (2, 3, 4)
    telling_keys: ClassVar[tuple[str, ...]] = ("head.0.weight", "tail.0.0.weight", "tail.1.weight")
    upsampler_keys: ClassVar[tuple[str, ...]] = ("tail.0.0.weight", "tail.0.2.weight", "tail.1.weight")

    newer_keys: ClassVar[tuple[str, ...]] = ("learned_shortcuts",)

    features: int = 64
    """Channels of every body convolution."""
    blocks: int = 16
    """Residual blocks."""
    residual_scale: float = 1.0
    """Factor on each block's residual; 0.1 in the full-size network. Not visible in a state dict."""
    learned_shortcuts: bool = False
    """Whether each block's shortcut has a factor, `body.{i}.shortcut` (QuantSR, Qin et al., NeurIPS 2023)."""

    @classmethod
    def sizes_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Features and blocks read off the keys; `residual_scale` is 0.1 from 256 features on, as published.

        Raises:
            InputError: mean shifts of another kind.
        """
        _check_mean_shifts(state)
        features = state["head.0.weight"].shape[0]
        return {
            "features": features,
            "blocks": count_numbers(state, r"body\.(\d+)\.body\."),
            "residual_scale": 0.1 if features >= 256 else 1.0,
            "learned_shortcuts": "body.0.shortcut" in state,
        }


def _check_mean_shifts(state: Mapping[str, Tensor]) -> None:
    """Refuse mean shifts that also mix or scale colours: `MeanShift` only adds."""
    for key in ("sub_mean.weight", "add_mean.weight"):
        weight = state.get(key)
        if weight is not None and not torch.equal(weight.reshape(3, -1).float(), torch.eye(3)):
            raise InputError(
                f"unsupported {key}",
                why=f"it is not the identity but {weight.flatten().tolist()}",
                fix="only mean shifts with unit standard deviation are known",
            )


class EDSR(SuperResolutionNetwork):
    """EDSR without batch normalisation, float32 [N, 3, H, W] -> [N, 3, scale*H, scale*W], both RGB in 0..255."""

    name = "edsr"
    regions: ClassVar[Mapping[str, Region]] = {"head": Region.HEAD, "body": Region.BODY, "tail": Region.TAIL}
    config: EdsrConfig  # pyright: ignore[reportIncompatibleVariableOverride] - only ever its own kind

    def __init__(self, config: EdsrConfig) -> None:
        super().__init__(config)
        features = config.features
        self.sub_mean = MeanShift(-1.0)
        self.add_mean = MeanShift(+1.0)
        self.head = nn.Sequential(conv3x3(3, features))
        blocks = [
            ResidualBlock(features, config.residual_scale, learned_shortcut=config.learned_shortcuts)
            for _ in range(config.blocks)
        ]
        self.body = nn.Sequential(*blocks, conv3x3(features, features))
        self.sum = Sum()
        self.tail = nn.Sequential(nn.Sequential(*upsampler(config.scale, features, features)), conv3x3(features, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Upscale."""
        shallow = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.sum(self.body(shallow), shallow)))

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

        Raises:
            InputError: blocks with learned shortcuts.
        """
        if self.config.learned_shortcuts:
            raise InputError(
                "this network cannot be exact",
                why="factors on its shortcuts round in floating point",
                fix="train with method.shortcut=false",
            )
        self.align_input()
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

    @torch.no_grad()
    def align_input(self) -> Grid:
        """Subtract one whole grey level instead of the mean colour, as `make_exact` does."""
        head = self.head[0]
        assert isinstance(head, nn.Conv2d) and head.bias is not None
        moved = EXACT_MEAN + self.sub_mean.bias.double()
        head.bias.copy_(head.bias.double() + head.weight.double().sum((2, 3)) @ moved)
        self.sub_mean.bias.fill_(-EXACT_MEAN)
        return self.pixel_grid

    @torch.no_grad()
    def align_output(self) -> None:
        """Add one whole grey level instead of the mean colour; the last bias makes up for the difference."""
        last = self.tail[1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        last.bias.add_(self.add_mean.bias - EXACT_MEAN)
        self.add_mean.bias.fill_(EXACT_MEAN)

    @property
    def output_grid(self) -> Grid:
        """8-bit images less `EXACT_MEAN`."""
        return Grid(1.0, EXACT_MEAN, 8)

    @property
    def pixel_grid(self) -> Grid:
        """8-bit images less `EXACT_MEAN`."""
        return Grid(1.0, EXACT_MEAN, 8)

    def region_of(self, layer: str) -> Region:
        """`body.{blocks}`, behind the blocks, is the body's end."""
        is_end = layer.split(".")[:2] == ["body", str(self.config.blocks)]
        return Region.BODY_END if is_end else super().region_of(layer)


class ResidualBlock(nn.Module):
    """x + residual_scale * conv(relu(conv(x))), [N, C, H, W] -> [N, C, H, W]; x may have a learned factor."""

    def __init__(self, features: int, residual_scale: float, *, learned_shortcut: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(features, features), nn.ReLU(), conv3x3(features, features))
        self.residual_scale = residual_scale
        self.shortcut = nn.Parameter(torch.ones(1)) if learned_shortcut else None
        self.sum = Sum()

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual."""
        residual = self.body(x)
        passed = x if self.shortcut is None else x * self.shortcut
        return self.sum(passed, residual if self.residual_scale == 1.0 else residual * self.residual_scale)


class MeanShift(nn.Module):
    """Subtract (sign -1) or add (+1) the mean colour; [N, 3, H, W] -> [N, 3, H, W].

    The public code writes this as a frozen 1x1 convolution with an identity weight, so state dicts carry one. Here only
    its bias is added: a runtime then has three additions per pixel to do, and none can mix channels.
    """

    def __init__(self, sign: float) -> None:
        super().__init__()
        # Plain numbers, not torch's arithmetic: on the meta device, where files are checked first, that costs a second
        # of imports.
        bias = np.float32(sign * 255.0) * np.array(DIV2K_MEAN_RGB, np.float32)
        identity = [[float(row == column) for column in range(3)] for row in range(3)]
        self.register_buffer("weight", torch.tensor(identity).reshape(3, 3, 1, 1))
        self.register_buffer("bias", torch.tensor(bias.tolist()))

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Shift."""
        return x + self.bias.reshape(1, 3, 1, 1)
