"""SwinIR-light: Image Restoration Using Swin Transformer (Liang et al., ICCV Workshops 2021), the lightweight network.

State-dict keys are those of the authors' code with `upsampler="pixelshuffledirect"`: `conv_first, patch_embed.norm,
layers.{i}.residual_group.blocks.{j}.{norm1, attn.{relative_position_bias_table,qkv,proj}, norm2, mlp.{fc1,fc2}},
layers.{i}.conv, norm, conv_after_body, upsample.0`. Weights expect RGB in 0..1 minus the mean of DIV2K.

Any image size: like the authors' code the network reflects the image to whole windows and crops the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.networks.base import Region, StateDict, SuperResolutionNetwork
from odm_deploy.networks.blocks import DIV2K_MEAN_RGB, Sum, conv3x3
from odm_deploy.networks.config import NetworkConfig, count_numbers
from odm_deploy.networks.window_attention import (
    WindowAttention,
    merge_windows,
    pad_reflected,
    partition_windows,
    relative_position_index,
    shifted_window_mask,
)

_FIRST_BLOCK = "layers.0.residual_group.blocks.0"
_POSITION_BIAS = f"{_FIRST_BLOCK}.attn.relative_position_bias_table"
_HIDDEN = f"{_FIRST_BLOCK}.mlp.fc1.weight"


@dataclass(frozen=True)
class SwinirConfig(NetworkConfig):
    """Hyper-parameters of SwinIR; the defaults are SwinIR-light's (in the quantization papers also SwinIR-S)."""

    title: ClassVar[str] = "SwinIR"
    scales: ClassVar[tuple[int, ...]] = (2, 3, 4)
    telling_keys: ClassVar[tuple[str, ...]] = ("conv_first.weight", _POSITION_BIAS, _HIDDEN)

    channels: int = 60
    """Width of a token."""
    groups: int = 4
    """Residual Swin transformer blocks (RSTB): each some Swin layers and a convolution."""
    depth: int = 6
    """Swin layers in each; every second one attends in shifted windows."""
    heads: int = 6
    """Attention heads; divides `channels`."""
    window: int = 8
    """Pixels along a window's side."""
    hidden: int = 120
    """Width inside the multi-layer perceptrons."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 2:
            raise InputError("no such SwinIR", why=f"{self}")
        if self.channels % self.heads:
            raise InputError("no such SwinIR", why=f"{self.channels} channels do not divide into {self.heads} heads")

    @classmethod
    def scale_of(cls, state: Mapping[str, Tensor]) -> int:
        """As of its only stage, from features to colours.

        Raises:
            InputError: another kind of SwinIR, which upsamples otherwise.
        """
        if "upsample.0.weight" not in state or "conv_last.weight" in state or "layers.0.conv.weight" not in state:
            raise InputError(
                "another kind of SwinIR",
                why="its upsampler is not pixelshuffledirect, or its residual connection not a single convolution",
                fix="only SwinIR-light (SwinIR-S) is known",
            )
        return math.isqrt(state["upsample.0.weight"].shape[0] // 3)

    @classmethod
    def sizes_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """All hyper-parameters read off the keys and shapes."""
        positions, heads = state[_POSITION_BIAS].shape
        return {
            "channels": state["conv_first.weight"].shape[0],
            "groups": count_numbers(state, r"layers\.(\d+)\."),
            "depth": count_numbers(state, r"layers\.0\.residual_group\.blocks\.(\d+)"),
            "heads": heads,
            "window": (math.isqrt(positions) + 1) // 2,
            "hidden": state[_HIDDEN].shape[0],
        }


class SwinIR(SuperResolutionNetwork):
    """SwinIR-light, float32 [N, 3, H, W] -> [N, 3, scale*H, scale*W], both RGB in 0..255, any H and W."""

    name = "swinir"
    regions: ClassVar[Mapping[str, Region]] = {
        "conv_first": Region.HEAD,
        "layers": Region.BODY,
        "conv_after_body": Region.BODY_END,
        "upsample": Region.TAIL,
    }
    config: SwinirConfig  # pyright: ignore[reportIncompatibleVariableOverride] - only ever its own kind
    mean: Tensor

    def __init__(self, config: SwinirConfig) -> None:
        super().__init__(config)
        channels = config.channels
        self.register_buffer("mean", torch.tensor(DIV2K_MEAN_RGB).reshape(1, 3, 1, 1), persistent=False)
        self.conv_first = conv3x3(3, channels)
        self.patch_embed = TokenNorm(channels)
        self.layers = nn.ModuleList(ResidualSwinBlock(config) for _ in range(config.groups))
        self.norm = nn.LayerNorm(channels)
        self.conv_after_body = conv3x3(channels, channels)
        self.sum = Sum()
        self.upsample = nn.Sequential(conv3x3(channels, 3 * config.scale**2), nn.PixelShuffle(config.scale))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale."""
        height, width = x.shape[2], x.shape[3]
        window, scale = self.config.window, self.config.scale
        rows, cols = (height + window - 1) // window, (width + window - 1) // window
        # Padded before it is normalised: OpenVINO 2026.4 crashes on the opposite order (`openvino_faults`).
        shallow = self.conv_first(pad_reflected(x, rows, cols, window) / 255.0 - self.mean)
        # For all images at once: between reshapes that tell them apart, OpenVINO 2026.4 attends step by step.
        mask = shifted_window_mask(rows, cols, window, window // 2, like=shallow)[:, None].repeat(x.shape[0], 1, 1, 1)
        tokens = self.patch_embed(shallow.permute(0, 2, 3, 1))
        for layer in self.layers:
            tokens = layer(tokens, mask, rows, cols)
        deep = self.sum(self.conv_after_body(self.norm(tokens).permute(0, 3, 1, 2)), shallow)
        y = (self.upsample(deep) + self.mean) * 255.0
        return y[:, :, : height * scale, : width * scale]

    def own_state(self, state: StateDict) -> StateDict:
        """A public state dict without the constants it carries: masks for one image size, and position indices.

        Raises:
            InputError: position indices other than this window's.
        """
        expected = relative_position_index(self.config.window)
        for key, value in state.items():
            if key.endswith(".relative_position_index") and not torch.equal(value.long(), expected):
                raise InputError(
                    f"unsupported {key}", why=f"it is not that of {self.config.window}-pixel windows", fix="check it"
                )
        constants = (".attn_mask", ".relative_position_index")
        return {key: value for key, value in state.items() if not key.endswith(constants)}


class TokenNorm(nn.Module):
    """Layer normalisation of each pixel's features, [N, H, W, C] -> same; a module for its key, `patch_embed.norm`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return self.norm(x)


class ResidualSwinBlock(nn.Module):
    """RSTB (Sec. 3.1, Eqs. 5 and 6): x + conv(layers(x)), [N, H, W, C] -> same."""

    def __init__(self, config: SwinirConfig) -> None:
        super().__init__()
        self.residual_group = SwinLayers(config)
        self.conv = conv3x3(config.channels, config.channels)

    def forward(self, x: Tensor, mask: Tensor, rows: int, cols: int) -> Tensor:
        """Add the residual."""
        features = self.residual_group(x, mask, rows, cols).permute(0, 3, 1, 2)
        return self.conv(features).permute(0, 2, 3, 1) + x


class SwinLayers(nn.Module):
    """Swin layers, with and without a shift in turns."""

    def __init__(self, config: SwinirConfig) -> None:
        super().__init__()
        shifts = [0 if index % 2 == 0 else config.window // 2 for index in range(config.depth)]
        self.blocks = nn.ModuleList(SwinLayer(config, shift) for shift in shifts)

    def forward(self, x: Tensor, mask: Tensor, rows: int, cols: int) -> Tensor:
        """Apply them."""
        for block in self.blocks:
            x = block(x, mask, rows, cols)
        return x


class SwinLayer(nn.Module):
    """Attention and a perceptron, each on normalised features and added to its input (Eq. 8); [N, H, W, C] -> same."""

    def __init__(self, config: SwinirConfig, shift: int) -> None:
        super().__init__()
        self.window, self.shift = config.window, shift
        self.norm1 = nn.LayerNorm(config.channels)
        self.attn = WindowAttention(config.channels, config.heads, config.window)
        self.norm2 = nn.LayerNorm(config.channels)
        self.mlp = Mlp(config.channels, config.hidden)

    def forward(self, x: Tensor, mask: Tensor, rows: int, cols: int) -> Tensor:
        """Attend, then transform."""
        attended = self.norm1(x)
        if self.shift:
            attended = torch.roll(attended, (-self.shift, -self.shift), (1, 2))
        windows = partition_windows(attended, rows, cols, self.window)
        attended = merge_windows(self.attn(windows, mask if self.shift else None), rows, cols, self.window)
        if self.shift:
            attended = torch.roll(attended, (self.shift, self.shift), (1, 2))
        x = x + attended
        # One row of tokens: OpenVINO 2026.4 adds a bias to products of four dimensions in a pass of its own.
        return x + self.mlp(self.norm2(x).flatten(1, 2)).reshape(x.shape)


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))), [..., C] -> [..., C]."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token."""
        return self.fc2(self.act(self.fc1(x)))
