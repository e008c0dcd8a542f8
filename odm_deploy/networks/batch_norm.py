"""Folding batch normalisation into the convolution before it.

At inference a batch norm is a fixed scale and shift per channel. It has to go before quantization: a quantizer placed
between convolution and norm would see other values than the one the network ends up with, and weight codes are those of
the folded weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from odm_deploy.networks.base import StateDict

EPSILON = 1e-5
"""What torch adds to the variance, `nn.BatchNorm2d`'s default; no state dict shows it."""


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
