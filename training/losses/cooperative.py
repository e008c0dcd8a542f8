"""ODM's cooperative gradient rules: how much of an auxiliary loss's gradient each parameter follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Granularity = Literal["tensor", "global", "element"]
Gradients = Mapping[str, Tensor]


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """(cos + 1) / 2 in [0, 1] between gradients taken as vectors; 0.5 where one is zero.

    Args:
        first: float32 [..., K].
        second: float32 [..., K].

    Returns:
        float32 [...].
    """
    norms = torch.linalg.vector_norm(first, dim=-1) * torch.linalg.vector_norm(second, dim=-1)
    cosine = (first * second).sum(dim=-1) / norms.clamp(min=torch.finfo(torch.float32).tiny)
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
    pairs = {name: (ours, auxiliary[name]) for name, ours in reconstruction.items() if name in auxiliary}
    combined = dict(reconstruction)
    overall: Tensor | None = None
    if granularity == "global" and pairs:
        overall = similarity(
            *(torch.cat([part.flatten() for part in side]) for side in zip(*pairs.values(), strict=True))
        )
    # Layers are alike: a GPU takes no longer for all of one size than for one of them.
    for names in _of_one_size({name: ours for name, (ours, _) in pairs.items()}):
        ours = torch.stack([pairs[name][0].flatten() for name in names])
        theirs = torch.stack([pairs[name][1].flatten() for name in names])
        if granularity == "element":
            factor = (ours * theirs >= 0).to(theirs.dtype)
        else:
            factor = similarity(ours, theirs).unsqueeze(1) if overall is None else overall
        for name, row in zip(names, ours + weight * factor * theirs, strict=True):
            combined[name] = row.view(reconstruction[name].shape)
    return combined


def _of_one_size(tensors: Gradients) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(tensor.numel(), []).append(name)
    return list(groups.values())


def combine_naively(reconstruction: Gradients, auxiliary: Gradients, weight: float) -> dict[str, Tensor]:
    """g_R + weight * g_aux: an ordinary weighted sum of losses, the papers' "naive" ablation."""
    combined = dict(reconstruction)
    for name, theirs in auxiliary.items():
        if name in reconstruction:
            combined[name] = reconstruction[name] + weight * theirs
    return combined
