"""SRResNet: the generator of SRGAN without its adversary (Ledig et al., CVPR 2017).

State-dict keys are those the quantization papers share: `conv_input, relu, residual.{i}.{conv1,in1,relu,conv2,in2},
conv_mid, bn_mid, upscale.{0,2,3,5}, conv_output`. No convolution has a bias, every PReLU one slope. `in1` and `in2` are
batch norms in spite of their names.

Batch norms are folded into the convolutions when public weights are loaded (`SrresnetConfig.folded`): the network that
is calibrated, trained quantized and deployed has none.
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
from odm_deploy.networks.base import NetworkConfig, Region, StateDict, SuperResolutionNetwork
from odm_deploy.networks.batch_norm import EPSILON, fold_batch_norms

SLOPE_UNIT = 2.0**-4
"""What the slopes of PReLUs are rounded to in an exact network; each bit of them is one less for its sums."""


@dataclass(frozen=True)
class SrresnetConfig(NetworkConfig):
    """Hyper-parameters of SRResNet; the defaults are the published size."""

    features: int = 64
    """Channels of every body convolution."""
    blocks: int = 16
    """Residual blocks."""
    folded: bool = True
    """Batch norms are part of the convolutions, which then have biases. False is for training from scratch."""
    input_range: float = 255.0
    """Value of white in the images the weights were trained on: 255 in the quantization papers' code (DDTB, AdaBM), 1
    in codes that divide images by 255 first. Not visible in a state dict."""

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4):
            raise InputError("no such SRResNet", why=f"scale {self.scale}", fix="SRResNet upscales by 2, 3 or 4")
        if self.features < 1 or self.blocks < 1:
            raise InputError("no such SRResNet", why=f"{self.features} features, {self.blocks} blocks")
        if not (math.isfinite(self.input_range) and self.input_range > 0):
            raise InputError("no such SRResNet", why=f"input_range {self.input_range}", fix="it is usually 255 or 1")

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], scale: int) -> Self:
        """Features and blocks read off the keys, of a public state dict or of a folded one.

        Raises:
            InputError: the keys are not SRResNet's, or belong to another scale.
        """
        if not {"conv_input.weight", "conv_mid.weight", "upscale.0.weight"} <= set(state):
            raise InputError(
                "not an SRResNet state dict",
                why=f"no conv_input.weight, conv_mid.weight, upscale.0.weight among its {len(state)} keys "
                f"({', '.join(list(state)[:3])} ..)",
                fix="name the right --network",
            )
        found = _scale_of(state)
        if found != scale:
            raise InputError(
                f"these are weights of SRResNet x{found}",
                why=f"scale {scale} was asked for",
                fix=f"use --scale {found}, or other weights",
            )
        blocks = len({match[1] for key in state if (match := re.match(r"residual\.(\d+)\.", key))})
        return cls(scale, state["conv_input.weight"].shape[0], blocks)


def _scale_of(state: Mapping[str, Tensor]) -> int:
    """The scale an upsampler was made for: x4 has two stages, x3 a ninefold one."""
    if "upscale.3.weight" in state:
        return 4
    first = state["upscale.0.weight"]
    return 3 if first.shape[0] == 9 * first.shape[1] else 2


class SRResNet(SuperResolutionNetwork):
    """SRResNet, float32 [N, 3, H, W] -> [N, 3, scale*H, scale*W], both RGB in 0..255."""

    name = "srresnet"
    config: SrresnetConfig

    def __init__(self, config: SrresnetConfig) -> None:
        super().__init__()
        self.config = config  # pyright: ignore[reportIncompatibleVariableOverride] - only ever its own kind
        features, folded = config.features, config.folded
        self.conv_input = nn.Conv2d(3, features, 9, padding=4, bias=False)
        self.relu = nn.PReLU()
        self.residual = nn.Sequential(*(ResidualBlock(features, folded=folded) for _ in range(config.blocks)))
        self.conv_mid = nn.Conv2d(features, features, 3, padding=1, bias=folded)
        self.bn_mid = _norm(features, folded=folded)
        stages: list[nn.Module] = []
        for factor in [2, 2] if config.scale == 4 else [config.scale]:
            stages += [
                nn.Conv2d(features, features * factor**2, 3, padding=1, bias=False),
                nn.PixelShuffle(factor),
                nn.PReLU(),
            ]
        self.upscale = nn.Sequential(*stages)
        self.conv_output = nn.Conv2d(features, 3, 9, padding=4, bias=False)
        self._initialize()

    def forward(self, x: Tensor) -> Tensor:
        """Upscale."""
        factor = 255.0 / self.config.input_range
        x = x if factor == 1.0 else x / factor
        shallow = self.relu(self.conv_input(x))
        deep = self.bn_mid(self.conv_mid(self.residual(shallow))) + shallow
        y = self.conv_output(self.upscale(deep))
        return y if factor == 1.0 else y * factor

    @torch.no_grad()
    def make_exact(self) -> None:
        """Fold the image's range into the outer convolutions and round every PReLU's slope.

        Raises:
            InputError: batch norms that are not folded.
        """
        if not self.config.folded:
            raise InputError(
                "SRResNet cannot be exact", why="its batch norms are not folded", fix="fold_batchnorm first"
            )
        factor = 255.0 / self.config.input_range
        self.conv_input.weight.div_(factor)
        self.conv_output.weight.mul_(factor)
        self.config = dataclasses.replace(self.config, input_range=255.0)  # pyright: ignore[reportIncompatibleVariableOverride]
        for module in self.modules():
            if isinstance(module, nn.PReLU):
                module.weight.copy_(torch.round(module.weight / SLOPE_UNIT) * SLOPE_UNIT)

    def region_of(self, layer: str) -> Region:
        """`conv_input` is the head, the blocks are the body, `conv_mid` is its end, the rest the tail."""
        part = layer.partition(".")[0]
        regions = {
            "conv_input": Region.HEAD,
            "residual": Region.BODY,
            "conv_mid": Region.BODY_END,
            "upscale": Region.TAIL,
            "conv_output": Region.TAIL,
        }
        return regions[part] if part in regions else super().region_of(layer)

    def own_state(self, state: StateDict) -> StateDict:
        """A public state dict, folded where this network is.

        Raises:
            InputError: batch norms of which tensors are missing.
        """
        if not self.config.folded or "bn_mid.weight" not in state:
            return state
        try:
            return fold_batch_norms(state, _norm_of(self.config.blocks))
        except KeyError as error:
            raise InputError(
                "the weights do not fit SRResNet", why=f"1 missing ({error.args[0]})", fix="check the checkpoint"
            ) from None

    def _initialize(self) -> None:
        """Normal weights with variance 2 / fan-out, as in the public code; torch's default trains more slowly."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class ResidualBlock(nn.Module):
    """x + norm(conv(prelu(norm(conv(x))))), [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, features: int, *, folded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1, bias=folded)
        self.in1 = _norm(features, folded=folded)
        self.relu = nn.PReLU()
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=folded)
        self.in2 = _norm(features, folded=folded)

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual."""
        return x + self.in2(self.conv2(self.relu(self.in1(self.conv1(x)))))


def fold_batchnorm(network: SRResNet) -> SRResNet:
    """The same function without batch norms, in eval mode and in `network`'s dtype; `network` is left as it is."""
    if network.config.folded:
        return network
    folded = SRResNet(dataclasses.replace(network.config, folded=True))
    state = fold_batch_norms(network.state_dict(), _norm_of(network.config.blocks))
    folded.to(network.conv_input.weight.dtype).load_state_dict(state)
    return folded.eval()


def _norm(features: int, *, folded: bool) -> nn.Module:
    return nn.Identity() if folded else nn.BatchNorm2d(features, eps=EPSILON)


def _norm_of(blocks: int) -> dict[str, str]:
    """Convolution -> batch norm that reads it."""
    pairs = {f"residual.{i}.conv{part}": f"residual.{i}.in{part}" for i in range(blocks) for part in (1, 2)}
    return {**pairs, "conv_mid": "bn_mid"}
