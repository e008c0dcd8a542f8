"""RDN: Residual Dense Network for Image Super-Resolution (Zhang et al., CVPR 2018).

State-dict keys are those of the EDSR authors' PyTorch code: `SFENet1, SFENet2, RDBs.{d}.convs.{c}.conv.0, RDBs.{d}.LFF,
GFF.{0,1}, UPNet.{0,2,4}`. Weights expect 0..255 and no mean shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from odm_deploy.grid import Grid
from odm_deploy.networks.base import Region, SuperResolutionNetwork
from odm_deploy.networks.blocks import Sum, conv3x3, upsampler
from odm_deploy.networks.config import NetworkConfig, count_numbers

_FIRST_GROWTH = "RDBs.0.convs.0.conv.0.weight"


@dataclass(frozen=True)
class RdnConfig(NetworkConfig):
    """Hyper-parameters of RDN; the defaults are the published network, D = 16, C = 8, G = G0 = 64."""

    title: ClassVar[str] = "RDN"
    scales: ClassVar[tuple[int, ...]] = (2, 3, 4)
    telling_keys: ClassVar[tuple[str, ...]] = (_FIRST_GROWTH, "UPNet.0.weight", "UPNet.2.weight")
    upsampler_keys: ClassVar[tuple[str, ...]] = ("UPNet.0.weight", "UPNet.2.weight", "UPNet.4.weight")

    blocks: int = 16
    """Residual dense blocks, D."""
    convolutions: int = 8
    """3x3 convolutions in each block, C."""
    growth: int = 64
    """Channels each of these adds, G."""
    features: int = 64
    """Channels between blocks, G0."""

    @classmethod
    def sizes_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Blocks, convolutions and widths read off the keys."""
        growth, features, _, _ = state[_FIRST_GROWTH].shape
        return {
            "blocks": count_numbers(state, r"RDBs\.(\d+)\."),
            "convolutions": count_numbers(state, r"RDBs\.0\.convs\.(\d+)\."),
            "growth": growth,
            "features": features,
        }


class RDN(SuperResolutionNetwork):
    """RDN, float32 [N, 3, H, W] -> [N, 3, scale*H, scale*W], both RGB in 0..255."""

    name = "rdn"
    # The papers quantize the fusion (GFF) together with the blocks it fuses, and neither of the first two convolutions.
    regions: ClassVar[Mapping[str, Region]] = {
        "SFENet1": Region.HEAD,
        "SFENet2": Region.BODY_END,
        "RDBs": Region.BODY,
        "GFF": Region.BODY,
        "UPNet": Region.TAIL,
    }
    config: RdnConfig  # pyright: ignore[reportIncompatibleVariableOverride] - only ever its own kind

    def __init__(self, config: RdnConfig) -> None:
        super().__init__(config)
        features, growth = config.features, config.growth
        self.SFENet1 = conv3x3(3, features)
        self.SFENet2 = conv3x3(features, features)
        self.RDBs = nn.ModuleList(
            ResidualDenseBlock(features, growth, config.convolutions) for _ in range(config.blocks)
        )
        self.GFF = nn.Sequential(nn.Conv2d(config.blocks * features, features, 1), conv3x3(features, features))
        self.sum = Sum()
        self.UPNet = nn.Sequential(*upsampler(config.scale, features, growth), conv3x3(growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Upscale."""
        shallow = self.SFENet1(x)
        block_input = self.SFENet2(shallow)
        outputs: list[Tensor] = []
        for block in self.RDBs:
            block_input = block(block_input)
            outputs.append(block_input)
        return self.UPNet(self.sum(self.GFF(torch.cat(outputs, 1)), shallow))

    @property
    def output_grid(self) -> Grid:
        """8-bit images as they are."""
        return Grid(1.0, 0, 8)

    def align_input(self) -> Grid:
        """Nothing to do: the first layer reads the image."""
        return self.pixel_grid

    def make_exact(self) -> None:
        """Nothing to do: between its convolutions there are only ReLUs, sums and concatenations."""


class ResidualDenseBlock(nn.Module):
    """Densely connected convolutions, fused by a 1x1 one, plus the input (Sec. 3.2); [N, G0, H, W] -> same."""

    def __init__(self, features: int, growth: int, convolutions: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(_DenseConv(features + c * growth, growth) for c in range(convolutions)))
        self.LFF = nn.Conv2d(features + convolutions * growth, features, 1)
        self.sum = Sum()

    def forward(self, x: Tensor) -> Tensor:
        """Add the fused features."""
        return self.sum(self.LFF(self.convs(x)), x)


class _DenseConv(nn.Module):
    """A convolution that appends its output to its input, [N, I, H, W] -> [N, I + G, H, W]."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv3x3(inputs, growth), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Append."""
        return torch.cat((x, self.conv(x)), 1)
