"""RDN: Residual Dense Network for Image Super-Resolution (Zhang et al., CVPR 2018).

State-dict keys are those of the EDSR authors' PyTorch code: `SFENet1, SFENet2, RDBs.{d}.convs.{c}.conv.0, RDBs.{d}.LFF,
GFF.{0,1}, UPNet.{0,2,4}`. Weights expect 0..255 and no mean shift.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.networks.base import NetworkConfig, Region, SuperResolutionNetwork
from odm_deploy.networks.edsr import conv3x3


@dataclass(frozen=True)
class RdnConfig(NetworkConfig):
    """Hyper-parameters of RDN; the defaults are the published network, D = 16, C = 8, G = G0 = 64."""

    blocks: int = 16
    """Residual dense blocks, D."""
    convolutions: int = 8
    """3x3 convolutions in each block, C."""
    growth: int = 64
    """Channels each of these adds, G."""
    features: int = 64
    """Channels between blocks, G0."""

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4):
            raise InputError("no such RDN", why=f"scale {self.scale}", fix="RDN upscales by 2, 3 or 4")
        if min(self.blocks, self.convolutions, self.growth, self.features) < 1:
            raise InputError("no such RDN", why=f"{self}")

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], scale: int) -> Self:
        """Blocks, convolutions and widths read off the keys.

        Raises:
            InputError: the keys are not RDN's, or belong to another scale.
        """
        first = state.get("RDBs.0.convs.0.conv.0.weight")
        if first is None or first.dim() != 4 or "UPNet.0.weight" not in state:
            raise InputError(
                "not an RDN state dict",
                why=f"no RDBs.0.convs.0.conv.0.weight, UPNet.0.weight among its {len(state)} keys "
                f"({', '.join(list(state)[:3])} ..)",
                fix="name the right --network",
            )
        growth, features = first.shape[:2]
        found = _scale_of(state, growth)
        if found != scale:
            raise InputError(
                f"these are weights of RDN x{found}",
                why=f"scale {scale} was asked for",
                fix=f"use --scale {found}, or other weights",
            )
        blocks = len({match[1] for key in state if (match := re.match(r"RDBs\.(\d+)\.", key))})
        convolutions = len({match[1] for key in state if (match := re.match(r"RDBs\.0\.convs\.(\d+)\.", key))})
        return cls(scale, blocks, convolutions, growth, features)


def _scale_of(state: Mapping[str, Tensor], growth: int) -> int:
    """The scale an upsampler was made for: x4 has two stages, x3 a ninefold one."""
    if "UPNet.4.weight" in state:
        return 4
    return 3 if state["UPNet.0.weight"].shape[0] == 9 * growth else 2


class RDN(SuperResolutionNetwork):
    """RDN, float32 [N, 3, H, W] -> [N, 3, scale*H, scale*W], both RGB in 0..255."""

    name = "rdn"
    config: RdnConfig

    def __init__(self, config: RdnConfig) -> None:
        super().__init__()
        self.config = config  # pyright: ignore[reportIncompatibleVariableOverride] - never assigned again
        features, growth = config.features, config.growth
        self.SFENet1 = conv3x3(3, features)
        self.SFENet2 = conv3x3(features, features)
        self.RDBs = nn.ModuleList(
            ResidualDenseBlock(features, growth, config.convolutions) for _ in range(config.blocks)
        )
        self.GFF = nn.Sequential(nn.Conv2d(config.blocks * features, features, 1), conv3x3(features, features))
        stages: list[nn.Module] = []
        inputs = features
        for factor in [2, 2] if config.scale == 4 else [config.scale]:
            stages += [conv3x3(inputs, growth * factor**2), nn.PixelShuffle(factor)]
            inputs = growth
        self.UPNet = nn.Sequential(*stages, conv3x3(growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Upscale."""
        shallow = self.SFENet1(x)
        block_input = self.SFENet2(shallow)
        outputs: list[Tensor] = []
        for block in self.RDBs:
            block_input = block(block_input)
            outputs.append(block_input)
        return self.UPNet(self.GFF(torch.cat(outputs, 1)) + shallow)

    def make_exact(self) -> None:
        """Nothing to do: between its convolutions there are only ReLUs, sums and concatenations."""

    def region_of(self, layer: str) -> Region:
        """Shallow features are the head, dense blocks and global fusion the body, `UPNet` the tail.

        Nothing is a body end: the papers quantize the fusion (GFF) together with the blocks it fuses.
        """
        part = layer.partition(".")[0]
        regions = {
            "SFENet1": Region.HEAD,
            "SFENet2": Region.HEAD,
            "RDBs": Region.BODY,
            "GFF": Region.BODY,
            "UPNet": Region.TAIL,
        }
        return regions[part] if part in regions else super().region_of(layer)


class ResidualDenseBlock(nn.Module):
    """Densely connected convolutions, fused by a 1x1 one, plus the input (Sec. 3.2); [N, G0, H, W] -> same."""

    def __init__(self, features: int, growth: int, convolutions: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(_DenseConv(features + c * growth, growth) for c in range(convolutions)))
        self.LFF = nn.Conv2d(features + convolutions * growth, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Add the fused features."""
        return self.LFF(self.convs(x)) + x


class _DenseConv(nn.Module):
    """A convolution that appends its output to its input, [N, I, H, W] -> [N, I + G, H, W]."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv3x3(inputs, growth), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Append."""
        return torch.cat((x, self.conv(x)), 1)
