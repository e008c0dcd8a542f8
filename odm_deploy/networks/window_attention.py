"""Attention inside windows, plain and shifted: what makes SwinIR (Liu et al., Swin Transformer, ICCV 2021, Sec. 3.2).

Features are [N, H, W, C] here, with H = rows * window and W = cols * window; a window is a row of tokens,
[N * rows * cols, window * window, C]. All sizes but the window are dynamic: nothing branches on them, so that one
exported graph serves every image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MASKED = -100.0
"""Added to the logits of token pairs that are no neighbours in the image; as in the public code, not minus infinity."""


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window, with a learnt bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.factor = (channels // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        # Follows from the window; public files carry it all the same (see `SwinIR.own_state`).
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend.

        Args:
            x: float [N * windows, T, C] with T = window * window tokens.
            mask: float [N * windows, 1, T, T], added to the logits; None in unshifted blocks.

        Returns:
            float [N * windows, T, C].
        """
        tokens, channels = x.shape[1], x.shape[2]
        qkv = self.qkv(x).reshape(-1, tokens, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        logits = (query * self.factor) @ key.transpose(-2, -1) + self.position_bias()
        if mask is not None:
            logits = logits + mask
        attended = torch.softmax(logits, -1) @ value
        return self.proj(attended.transpose(1, 2).reshape(-1, tokens, channels))

    def position_bias(self) -> Tensor:
        """The learnt bias of each pair of tokens, float [heads, T, T]."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens, int64 [T, T]: (dy + window-1) * (2*window-1) + dx + window-1."""
    steps = torch.arange(window)
    y, x = steps.repeat_interleave(window), steps.repeat(window)
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def partition_windows(x: Tensor, rows: int, cols: int, window: int) -> Tensor:
    """[N, rows * window, cols * window, C] -> [N * rows * cols, window * window, C]."""
    channels = x.shape[3]
    tiles = x.reshape(-1, rows, window, cols, window, channels).permute(0, 1, 3, 2, 4, 5)
    return tiles.reshape(-1, window * window, channels)


def merge_windows(windows: Tensor, rows: int, cols: int, window: int) -> Tensor:
    """The inverse of `partition_windows`."""
    channels = windows.shape[2]
    tiles = windows.reshape(-1, rows, cols, window, window, channels).permute(0, 1, 3, 2, 4, 5)
    return tiles.reshape(-1, rows * window, cols * window, channels)


def shifted_window_mask(rows: int, cols: int, window: int, shift: int, like: Tensor) -> Tensor:
    """What keeps tokens that a cyclic shift brought together from the opposite border from seeing each other.

    After a roll by `-shift` the last `shift` rows and columns come from the other side of the image. Only they differ
    from their window's other tokens; windows away from the border get zeros.

    Args:
        rows: windows from top to bottom.
        cols: windows from left to right.
        window: tokens along a window's side.
        shift: tokens rolled, 0 < shift < window.
        like: a tensor of the dtype and device wanted.

    Returns:
        float [rows * cols, T, T]: 0 or `MASKED`.
    """
    came_from_top = _wrapped(rows, window, shift, like).reshape(rows, 1, window, 1)
    came_from_left = _wrapped(cols, window, shift, like).reshape(1, cols, 1, window)
    side = (2.0 * came_from_top + came_from_left).reshape(rows * cols, window * window)
    apart = (side[:, :, None] - side[:, None, :]).abs().clamp(max=1.0)
    return apart * MASKED


def _wrapped(count: int, window: int, shift: int, like: Tensor) -> Tensor:
    """1 for the last `shift` of `count * window` positions, else 0."""
    position = torch.arange(count * window, device=like.device)
    return (position >= count * window - shift).to(like.dtype)


def pad_reflected(x: Tensor, rows: int, cols: int, window: int) -> Tensor:
    """[N, C, H, W] continued at the bottom and the right, by reflection, to [N, C, rows * window, cols * window].

    The border pixel is not repeated. An image smaller than what it lacks is reflected back and forth, where torch's and
    ONNX's reflection padding give up.
    """
    x = x.index_select(2, _reflected(x.shape[2], rows * window, x.device))
    return x.index_select(3, _reflected(x.shape[3], cols * window, x.device))


def _reflected(size: int, padded: int, device: torch.device) -> Tensor:
    """Indices 0 .. size-1 .. 0 .. size-1 .., `padded` of them, int64."""
    # Tensors rather than integers: a comparison of symbolic sizes would bind the exported graph to one outcome. And
    # `maximum` rather than `clamp`, because TensorRT has no integer Clip, and rather than `abs`, because OpenVINO
    # 2026.4 leaves whole numbers negative where it knows them at compilation, as in graphs of one size.
    last = torch.arange(size, device=device)[-1:]
    period = torch.maximum(2 * last, torch.ones_like(last))
    beyond = torch.remainder(torch.arange(padded, device=device), period) - last
    return last - torch.maximum(beyond, -beyond)
