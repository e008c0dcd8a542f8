"""Blocks that train as several branches and compute as one convolution (structural reparameterization).

Ding et al., RepVGG (CVPR 2021); here in the form that SPAN (Wan et al., CVPRW 2024) gives its blocks.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_SLOPE = 0.05
"""Of the leaky ReLU inside SPAN's blocks."""


def fold_branches(module: nn.Module) -> None:
    """Replace, in place, blocks of branches that a single convolution stands for by that convolution.

    SPAN trains such blocks and computes the convolution anew in every forward; a quantized layer has to own it.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            block: Any = child
            if not (isinstance(getattr(child, "eval_conv", None), nn.Conv2d) and hasattr(child, "update_params")):
                continue
            block.update_params()
            conv = block.eval_conv
            setattr(parent, name, nn.Sequential(conv, nn.LeakyReLU(_SLOPE)) if block.has_relu else conv)
