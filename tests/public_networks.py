"""Networks whose public weights no library recognises, written down from their papers with the weights' names.

They take and give images in 0..255, which their weights do not show.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


class SpatialAttention(nn.Module):
    """Enhanced spatial attention (Liu et al., Residual Feature Aggregation, CVPR 2020), without RFA's outer parts."""

    def __init__(self, features: int, inner: int, *, deep: bool) -> None:
        super().__init__()
        self.conv1, self.conv_f, self.conv4 = conv(features, inner, 1), conv(inner, inner, 1), conv(inner, features, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=2)
        self.conv3 = conv(inner, inner)
        if deep:
            self.conv_max, self.conv3_ = conv(inner, inner), conv(inner, inner)
        self.deep = deep

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.conv1(x)
        wide = F.max_pool2d(self.conv2(narrow), 7, 3)
        wide = self.conv3_(F.relu(self.conv3(F.relu(self.conv_max(wide))))) if self.deep else self.conv3(wide)
        wide = F.interpolate(wide, x.shape[2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(wide + self.conv_f(narrow)))


class LocalFeatureBlock(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (conv(features, features) for _ in range(3))
        self.c5 = conv(features, features, 1)
        self.esa = SpatialAttention(features, 16, deep=False)

    def forward(self, x: Tensor) -> Tensor:
        deep = x
        for layer in (self.c1_r, self.c2_r, self.c3_r):
            deep = F.leaky_relu(layer(deep), 0.05)
        return self.esa(self.c5(deep + x))


class RLFN(nn.Module):
    """Residual Local Feature Network (Kong et al., CVPRW 2022)."""

    def __init__(self, features: int = 48, blocks: int = 6, scale: int = 4) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = conv(3, features), conv(features, features)
        for index in range(blocks):
            self.add_module(f"block_{index + 1}", LocalFeatureBlock(features))
        self.upsampler = nn.Sequential(conv(features, 3 * scale**2), nn.PixelShuffle(scale))
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        first = deep = self.conv_1(x)
        for index in range(self.blocks):
            deep = self.get_submodule(f"block_{index + 1}")(deep)
        return self.upsampler(self.conv_2(deep) + first)


class DistillationBlock(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        half = features // 2
        for index in (1, 2, 3):
            self.add_module(f"c{index}_d", conv(features, half, 1))
            self.add_module(f"c{index}_r", conv(features, features))
        self.c4, self.c5 = conv(features, half), conv(4 * half, features, 1)
        self.esa = SpatialAttention(features, features // 4, deep=True)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for index in (1, 2, 3):
            kept.append(F.leaky_relu(self.get_submodule(f"c{index}_d")(x), 0.05))
            x = F.leaky_relu(self.get_submodule(f"c{index}_r")(x) + x, 0.05)
        kept.append(F.leaky_relu(self.c4(x), 0.05))
        return self.esa(self.c5(torch.cat(kept, 1)))


class RFDN(nn.Module):
    """Residual Feature Distillation Network (Liu et al., ECCVW 2020)."""

    def __init__(self, features: int = 50, blocks: int = 4, scale: int = 4) -> None:
        super().__init__()
        self.fea_conv, self.LR_conv = conv(3, features), conv(features, features)
        self.blocks = [f"B{number}" for number in range(1, blocks + 1)]
        for name in self.blocks:
            self.add_module(name, DistillationBlock(features))
        self.c = nn.Sequential(conv(blocks * features, features, 1), nn.LeakyReLU(0.05))
        self.upsampler = nn.Sequential(conv(features, 3 * scale**2), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        first = deep = self.fea_conv(x)
        kept = []
        for name in self.blocks:
            deep = self.get_submodule(name)(deep)
            kept.append(deep)
        return self.upsampler(self.LR_conv(self.c(torch.cat(kept, 1))) + first)


class MultiDistillationBlock(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.kept = features // 4
        self.c1 = conv(features, features)
        self.c2, self.c3 = (conv(features - self.kept, features) for _ in range(2))
        self.c4 = conv(features - self.kept, self.kept)
        self.squeeze, self.excite = conv(features, 4, 1), conv(4, features, 1)
        self.c5 = conv(4 * self.kept, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, rest = [], x
        for layer in (self.c1, self.c2, self.c3):
            out = F.leaky_relu(layer(rest), 0.05)
            first, rest = torch.split(out, (self.kept, out.shape[1] - self.kept), 1)
            kept.append(first)
        joined = torch.cat([*kept, self.c4(rest)], 1)
        # Contrast-aware attention: deviation and mean of each channel.
        mean = joined.mean((2, 3), keepdim=True)
        contrast = (joined - mean).square().mean((2, 3), keepdim=True).sqrt() + mean
        attention = torch.sigmoid(self.excite(F.relu(self.squeeze(contrast))))
        return self.c5(joined * attention) + x


class IMDN(nn.Module):
    """Information Multi-Distillation Network (Hui et al., ACM MM 2019)."""

    def __init__(self, features: int = 64, blocks: int = 6, scale: int = 4) -> None:
        super().__init__()
        self.fea_conv, self.LR_conv = conv(3, features), conv(features, features)
        self.blocks = nn.ModuleList(MultiDistillationBlock(features) for _ in range(blocks))
        self.c = nn.Sequential(conv(blocks * features, features, 1), nn.LeakyReLU(0.05))
        self.upsampler = nn.Sequential(conv(features, 3 * scale**2), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        first = deep = self.fea_conv(x)
        kept = []
        for block in self.blocks:
            deep = block(deep)
            kept.append(deep)
        return self.upsampler(self.LR_conv(self.c(torch.cat(kept, 1))) + first)


class EfficientResidualBlock(nn.Module):
    def __init__(self, features: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1, groups=groups),
            nn.ReLU(),
            nn.Conv2d(features, features, 3, padding=1, groups=groups),
            nn.ReLU(),
            conv(features, features, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x)


class CascadingBlock(nn.Module):
    """One residual block that runs three times, with what it gave each time joined and mixed."""

    def __init__(self, features: int, groups: int) -> None:
        super().__init__()
        self.b1 = self.b2 = self.b3 = EfficientResidualBlock(features, groups)
        for index in (2, 3, 4):
            self.add_module(f"c{index - 1}", nn.Sequential(conv(index * features, features, 1), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        joined = x
        for index in (1, 2, 3):
            joined = torch.cat([joined, self.get_submodule(f"b{index}")(x)], 1)
            x = self.get_submodule(f"c{index}")(joined)
        return x


class CARN(nn.Module):
    """Cascading Residual Network, mobile (Ahn et al., ECCV 2018)."""

    def __init__(self, features: int = 64, groups: int = 4, scale: int = 4) -> None:
        super().__init__()
        self.entry, self.exit = conv(3, features), conv(features, 3)
        for index in (1, 2, 3):
            self.add_module(f"b{index}", CascadingBlock(features, groups))
            self.add_module(f"c{index}", nn.Sequential(conv((index + 1) * features, features, 1), nn.ReLU()))
        self.upsample = nn.Sequential()
        for _ in range(scale // 2):
            wide = nn.Conv2d(features, 4 * features, 3, padding=1, groups=groups)
            self.upsample.extend([wide, nn.ReLU(), nn.PixelShuffle(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = joined = self.entry(x)
        for index in (1, 2, 3):
            joined = torch.cat([joined, self.get_submodule(f"b{index}")(x)], 1)
            x = self.get_submodule(f"c{index}")(joined)
        return self.exit(self.upsample(x))
