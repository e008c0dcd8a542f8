"""Folding what computes as one convolution into one, before quantization: weight codes are those of the folded weight.

Batch norms, at inference a fixed scale and shift per channel, go into the convolution before them: a quantizer between
the two would see other values than the one the network ends up with. Blocks that train as several branches become the
one convolution they compute as: structural reparameterization (Ding et al., RepVGG, CVPR 2021), here in the form that
SPAN (Wan et al., CVPRW 2024) gives its blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from odm_deploy.networks.base import StateDict

EPSILON = 1e-5
"""What torch adds to the variance, `nn.BatchNorm2d`'s default; no state dict shows it."""

_SPAN_SLOPE = 0.05
"""Of the leaky ReLU inside SPAN's blocks."""


def fold_batch_norms(state: Mapping[str, Tensor], norm_of: Mapping[str, str]) -> StateDict:
    """A state dict in which the named batch norms are part of the convolutions before them.

        w' = w * gamma / sqrt(var + eps)        b' = (b - mean) * gamma / sqrt(var + eps) + beta

    Computed in float64 and rounded once, so that a float32 network differs by one rounding per weight only.

    Args:
        state: tensors by key; convolutions may lack a bias.
        norm_of: dotted name of each convolution -> dotted name of the batch norm that reads its output.

    Returns:
        A new dict; every convolution in `norm_of` has a bias, no key of a folded norm is left.

    Raises:
        KeyError: a convolution's weight or a norm's tensor is missing.
    """
    folded = dict(state)
    for conv, norm in norm_of.items():
        weight = state[f"{conv}.weight"]
        gamma, beta, mean, variance = (
            state[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gamma / torch.sqrt(variance + EPSILON)
        bias = state.get(f"{conv}.bias")
        centered = -mean if bias is None else bias.double() - mean
        folded[f"{conv}.weight"] = (weight.double() * factor[:, None, None, None]).to(weight.dtype)
        folded[f"{conv}.bias"] = (centered * factor + beta).to(weight.dtype)
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            folded.pop(f"{norm}.{part}", None)
    return folded


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
            setattr(parent, name, nn.Sequential(conv, nn.LeakyReLU(_SPAN_SLOPE)) if block.has_relu else conv)


def fold_parametrizations(module: nn.Module) -> None:
    """Replace, in place, weights that are computed anew in every run by what they come out as.

    Weight norm (Salimans and Kingma, 2016), as WDSR and its heirs train with, spectral norm, and whatever else
    `torch.nn.utils.parametrize` was told; a quantized layer has to own its weight.
    """
    for layer, hook in _norms(module):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(layer, hook.name)
        else:
            remove_spectral_norm(layer, hook.name)
    for layer in module.modules():
        if parametrize.is_parametrized(layer):
            # Not torch's own removal, which takes the weight from all copies: they share a class made for it.
            values = {name: getattr(layer, name).detach().clone() for name in layer.parametrizations}  # pyright: ignore[reportGeneralTypeIssues]
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer.parametrizations
            for name, value in values.items():
                layer.register_parameter(name, nn.Parameter(value))


def copy_of(module: nn.Module) -> nn.Module:
    """A copy of somebody's module. What weight norm computed in its last run cannot be copied, and is not needed."""
    for layer, hook in _norms(module):
        setattr(layer, hook.name, getattr(layer, hook.name).detach())
    return copy.deepcopy(module)


def _norms(module: nn.Module) -> list[tuple[nn.Module, WeightNorm | SpectralNorm]]:
    """Layers with weight or spectral norm of the older kind, which are hooks in front of a layer's run."""
    return [
        (layer, hook)
        for layer in module.modules()
        for hook in layer._forward_pre_hooks.values()  # pyright: ignore[reportPrivateUsage] - torch's own way
        if isinstance(hook, (WeightNorm, SpectralNorm))
    ]
