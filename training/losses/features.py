"""Losses on features, as the methods' papers define them. Features are in units of the 0..255 image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.distributed import World


def mismatch_loss(records: Sequence[tuple[Tensor, Tensor]], world: World) -> Tensor:
    """ODM v2's feature mismatch: sum over layers of || X_i - q(X_i) ||_2, q(X_i) held fixed; float32 [].

    The norm is the un-averaged Frobenius norm over the whole batch. With several processes each returns its share: the
    gradients of the shares add up to the gradient of the loss on the global batch.

    Args:
        records: (input of the quantizer, its levels) of every quantized layer.
        world: the processes that share the batch.
    """
    if world.size == 1:
        norms = [torch.linalg.vector_norm(x - levels.detach()) for x, levels in records]
        return torch.stack(norms).sum()
    local = torch.stack([(x - levels.detach()).square().sum() for x, levels in records])
    everywhere = world.sum([local.detach().clone()])[0].clamp(min=torch.finfo(torch.float32).tiny)
    # d||v|| = v dv / ||v||: the gradient needs the global norm, the numerator is this process's.
    return (local / (2 * everywhere.sqrt())).sum()


def variance_loss(records: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """ODM v1's L_V / lambda_V: the sum over layers of the standard deviation of X_i over batch, channels and space."""
    return torch.stack([x.float().std(correction=0) for x, _ in records]).sum()


def structured_knowledge(features: Tensor) -> Tensor:
    """What SKT compares: the channel mean of X^2, flattened, with unit L2 norm per image; [N, H*W]. (PAMS, 3.3)"""
    return F.normalize(features.float().square().mean(dim=1).flatten(1), dim=1)


def structured_knowledge_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """L_SKT, the mean squared distance between the two structured knowledges; float32 []."""
    return (structured_knowledge(student) - structured_knowledge(teacher)).square().mean()
