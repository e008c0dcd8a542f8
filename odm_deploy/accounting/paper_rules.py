"""The two conventions, and where the papers' differs from network to network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.registry import build_network

Convention = Literal["paper", "honest"]


@dataclass(frozen=True)
class PaperRule:
    """How a network's official quantized code departs from one quantizer before every quantized layer."""

    float_inputs: tuple[str, ...] = ()
    """Quantized layers whose input has no quantizer there: their activations count 32 bits."""
    range_words_per_quantizer: int = 2
    """Words the storage figure includes for the range (l, u) of each activation quantizer."""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Hyper-parameters of the network the figure describes, where they are not the defaults."""
    reason: str = ""
    """Why."""


PAPER_RULES: Mapping[str, PaperRule] = {
    "edsr": PaperRule(
        float_inputs=("body.0.body.0",),
        range_words_per_quantizer=0,
        reason="in the official graph no quantizer lies between the float head and the first block's convolution; the "
        "printed storage has no range words",
    ),
    "rdn": PaperRule(
        float_inputs=("GFF.1",),
        reason="the official global fusion has one quantizer, before its 1x1 convolution; the 3x3 one reads floats",
    ),
    "srresnet": PaperRule(
        config={"folded": False},
        reason="the official network keeps its batch norms, whose scales and shifts count as parameters",
    ),
}
"""By network name; others count with the default rule."""


def accounted_network(name: str, scale: int, convention: Convention) -> SuperResolutionNetwork:
    """The network a convention describes: the paper's as published, the honest one as this project deploys it.

    Raises:
        UsageError: no network of that name.
        InputError: it does not come at that scale.
    """
    config = PAPER_RULES.get(name, PaperRule()).config if convention == "paper" else {}
    with torch.device("meta"):
        return build_network(name, {"scale": scale, **config})
