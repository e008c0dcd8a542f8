"""Padding as numbers of zeros, which is all that quantized convolutions know; other borders as a layer in front of it.

A border of reflected or repeated values is made of the input's own: quantized afterwards, it is the border of the
quantized input. So it may stand in front, and the convolution pads nothing.
"""

from __future__ import annotations

from torch import nn

from odm_deploy.networks.replacing import is_ordinary

_BORDERS: dict[str, type[nn.Module]] = {
    "zeros": nn.ZeroPad2d,
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
    "circular": nn.CircularPad2d,
}


def make_padding_explicit(module: nn.Module) -> None:
    """Change, in place, the convolutions inside a module whose padding is a word, uneven or no zeros.

    `padding="same"` becomes the numbers it stands for. Where these differ from side to side, or the border is not
    zero, a padding layer and the convolution take the convolution's place. The module computes the same.
    """
    explicit: dict[nn.Module, nn.Module] = {}
    for parent in list(module.modules()):
        for name, child in parent._modules.items():  # pyright: ignore[reportPrivateUsage] - shared ones under each name
            if isinstance(child, nn.Conv2d) and is_ordinary(child):
                if child not in explicit:
                    explicit[child] = _explicit(child)
                setattr(parent, name, explicit[child])


def is_explicit(conv: nn.Conv2d) -> bool:
    """Whether a convolution pads numbers of zeros."""
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _explicit(conv: nn.Conv2d) -> nn.Module:
    if is_explicit(conv):
        return conv
    (top, bottom), (left, right) = (_border(conv, axis) for axis in (0, 1))
    mode, conv.padding_mode = conv.padding_mode, "zeros"
    if mode == "zeros" and top == bottom and left == right:
        conv.padding = (top, left)
        return conv
    conv.padding = (0, 0)
    return nn.Sequential(_BORDERS[mode]((left, right, top, bottom)), conv)


def _border(conv: nn.Conv2d, axis: int) -> tuple[int, int]:
    """What is padded before and behind; of `same`, torch puts the odd one behind."""
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        both = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        return both // 2, both - both // 2
    assert not isinstance(conv.padding, str)
    return conv.padding[axis], conv.padding[axis]
