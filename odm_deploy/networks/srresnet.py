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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.networks.base import Region, StateDict, SuperResolutionNetwork
from odm_deploy.networks.blocks import Sum, conv3x3, upsampler
from odm_deploy.networks.config import NetworkConfig, count_numbers
from odm_deploy.networks.dyadic_slopes import round_slopes
from odm_deploy.networks.folding import EPSILON, fold_batch_norms


@dataclass(frozen=True)
class SrresnetConfig(NetworkConfig):
    """Hyper-parameters of SRResNet; the defaults are the published size."""

    title: ClassVar[str] = "SRResNet"
    scales: ClassVar[tuple[int, ...]] = (2, 3, 4)
    telling_keys: ClassVar[tuple[str, ...]] = (
        "conv_input.weight",
        "conv_mid.weight",
        "upscale.0.weight",
        "conv_output.weight",
    )
    upsampler_keys: ClassVar[tuple[str, ...]] = ("upscale.0.weight", "upscale.3.weight", "conv_output.weight")

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
        super().__post_init__()
        if self.input_range <= 0:
            raise InputError("no such SRResNet", why=f"input_range {self.input_range}", fix="it is usually 255 or 1")

    @classmethod
    def sizes_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Features and blocks read off the keys, of a public state dict or of a folded one."""
        return {
            "features": state["conv_input.weight"].shape[0],
            "blocks": count_numbers(state, r"residual\.(\d+)\."),
        }


class SRResNet(SuperResolutionNetwork):
    """SRResNet, float32 [N, 3, H, W] -> [N, 3, scale*H, scale*W], both RGB in 0..255."""

    name = "srresnet"
    regions: ClassVar[Mapping[str, Region]] = {
        "conv_input": Region.HEAD,
        "residual": Region.BODY,
        "conv_mid": Region.BODY_END,
        "upscale": Region.TAIL,
        "conv_output": Region.TAIL,
    }
    config: SrresnetConfig  # pyright: ignore[reportIncompatibleVariableOverride] - only ever its own kind

    def __init__(self, config: SrresnetConfig) -> None:
        super().__init__(config)
        features, folded = config.features, config.folded
        self.conv_input = nn.Conv2d(3, features, 9, padding=4, bias=False)
        self.relu = nn.PReLU()
        self.residual = nn.Sequential(*(ResidualBlock(features, folded=folded) for _ in range(config.blocks)))
        self.conv_mid = conv3x3(features, features, bias=folded)
        self.bn_mid = _norm(features, folded=folded)
        self.sum = Sum()
        self.upscale = nn.Sequential(*upsampler(config.scale, features, features, bias=False, activation=nn.PReLU))
        self.conv_output = nn.Conv2d(features, 3, 9, padding=4, bias=False)
        self._initialize()

    def forward(self, x: Tensor) -> Tensor:
        """Upscale."""
        factor = 255.0 / self.config.input_range
        x = x if factor == 1.0 else x / factor
        shallow = self.relu(self.conv_input(x))
        deep = self.sum(self.bn_mid(self.conv_mid(self.residual(shallow))), shallow)
        y = self.conv_output(self.upscale(deep))
        return y if factor == 1.0 else y * factor

    @property
    def output_grid(self) -> Grid:
        """8-bit images, in the range the network computes in."""
        return Grid(self.config.input_range / 255.0, 0, 8)

    def align_input(self) -> Grid:
        """Nothing to do: the first layer reads 8-bit images, in the range the network computes in."""
        return Grid(self.config.input_range / 255.0, 0, 8)

    @torch.no_grad()
    def make_exact(self) -> None:
        """Fold batch norms and the image's range into the convolutions, and round every PReLU's slope."""
        self.fold_batch_norms()
        factor = 255.0 / self.config.input_range
        self.conv_input.weight.div_(factor)
        self.conv_output.weight.mul_(factor)
        self.config = dataclasses.replace(self.config, input_range=255.0)  # pyright: ignore[reportIncompatibleVariableOverride]
        round_slopes(self)

    def fold_batch_norms(self) -> None:
        """Make batch norms part of the convolutions before them, in place: the same function in evaluation mode.

        Loading public weights does it already (`SrresnetConfig.folded`).
        """
        if self.config.folded:
            return
        norm_of = _norm_of(self.config.blocks)
        state = fold_batch_norms(self.state_dict(), norm_of)
        for conv, norm in norm_of.items():
            self.get_submodule(conv).register_parameter("bias", nn.Parameter(state[f"{conv}.bias"].clone()))
            owner, _, name = norm.rpartition(".")
            setattr(self.get_submodule(owner), name, nn.Identity())
        self.load_state_dict(state)
        self.config = dataclasses.replace(self.config, folded=True)  # pyright: ignore[reportIncompatibleVariableOverride]

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
        self.conv1 = conv3x3(features, features, bias=folded)
        self.in1 = _norm(features, folded=folded)
        self.relu = nn.PReLU()
        self.conv2 = conv3x3(features, features, bias=folded)
        self.in2 = _norm(features, folded=folded)
        self.sum = Sum()

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual."""
        return self.sum(x, self.in2(self.conv2(self.relu(self.in1(self.conv1(x))))))


def _norm(features: int, *, folded: bool) -> nn.Module:
    return nn.Identity() if folded else nn.BatchNorm2d(features, eps=EPSILON)


def _norm_of(blocks: int) -> dict[str, str]:
    """Convolution -> batch norm that reads it."""
    pairs = {f"residual.{i}.conv{part}": f"residual.{i}.in{part}" for i in range(blocks) for part in (1, 2)}
    return {**pairs, "conv_mid": "bn_mid"}
