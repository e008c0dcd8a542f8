"""Layers that several networks share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

DIV2K_MEAN_RGB = (0.4488, 0.4371, 0.4040)
"""Mean colour of DIV2K, as a share of 255 (Lim et al., CVPRW 2017, Sec. 4)."""


def conv3x3(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution that keeps the image size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class Sum(nn.Module):
    """x + y, [N, C, H, W] both; a module so that the sum has a name, by which it can be put on a grid."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add."""
        return x + y


def upsampler(
    scale: int, inputs: int, width: int, *, bias: bool = True, activation: Callable[[], nn.Module] | None = None
) -> list[nn.Module]:
    """Sub-pixel convolutions, [N, inputs, H, W] -> [N, width, scale*H, scale*W]: two x2 stages for x4, else one.

    Every stage ends with what `activation` makes, if anything.
    """
    layers: list[nn.Module] = []
    for factor in [2, 2] if scale == 4 else [scale]:
        layers += [conv3x3(inputs, width * factor**2, bias=bias), nn.PixelShuffle(factor)]
        layers += [activation()] if activation else []
        inputs = width
    return layers
