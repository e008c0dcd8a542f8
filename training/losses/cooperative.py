"""ODM's cooperative gradient rules: how much of an auxiliary loss's gradient each parameter follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Granularity = Literal["tensor", "global", "element"]
Gradients = Mapping[str, Tensor]


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """(cos + 1) / 2 in [0, 1] between two gradients taken as vectors; float32 []. 0.5 where one is zero."""
    a, b = first.flatten(), second.flatten()
    norms = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    cosine = torch.dot(a, b) / norms.clamp(min=torch.finfo(torch.float32).tiny)
    return (cosine.clamp(-1.0, 1.0) + 1.0) / 2.0


def combine_cooperatively(
    reconstruction: Gradients, auxiliary: Gradients, weight: float, granularity: Granularity
) -> dict[str, Tensor]:
    """g_R + weight * sim(g_R, g_aux) * g_aux for every parameter both losses reach (ODM v2's update).

    Args:
        reconstruction: gradients of the reconstruction loss by parameter name.
        auxiliary: gradients of the auxiliary loss; parameters missing here follow the reconstruction alone.
        weight: lambda of the auxiliary loss.
        granularity: what the similarity is taken over: each parameter `tensor`, all of them together (`global`), or
            each scalar (`element`, where cos is +-1, so that the auxiliary gradient counts fully or not at all: the
            sign rule of ODM v1).
    """
    shared = [name for name in auxiliary if name in reconstruction]
    factors: dict[str, Tensor] = {}
    if granularity == "global" and shared:
        everything = similarity(
            torch.cat([reconstruction[name].flatten() for name in shared]),
            torch.cat([auxiliary[name].flatten() for name in shared]),
        )
        factors = dict.fromkeys(shared, everything)
    combined = dict(reconstruction)
    for name in shared:
        ours, theirs = reconstruction[name], auxiliary[name]
        if granularity == "element":
            factor = (ours * theirs >= 0).to(theirs.dtype)
        elif granularity == "tensor":
            factor = similarity(ours, theirs)
        else:
            factor = factors[name]
        combined[name] = ours + weight * factor * theirs
    return combined


def combine_naively(reconstruction: Gradients, auxiliary: Gradients, weight: float) -> dict[str, Tensor]:
    """g_R + weight * g_aux: an ordinary weighted sum of losses, the papers' "naive" ablation."""
    combined = dict(reconstruction)
    for name, theirs in auxiliary.items():
        if name in reconstruction:
            combined[name] = reconstruction[name] + weight * theirs
    return combined
