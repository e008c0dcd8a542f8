"""A network for one scale, started from the weights of another (Lim et al., EDSR, CVPRW 2017, Sec. 3.2)."""

from __future__ import annotations

import dataclasses

import torch

from odm_deploy.errors import InputError
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.registry import build_network, network_names


def rescaled(donor: SuperResolutionNetwork, scale: int, seed: int) -> SuperResolutionNetwork:
    """A network like `donor` for another scale.

    Args:
        donor: any of this project's networks, with its weights; left as it is.
        scale: output pixels per input pixel along each axis.
        seed: of what `donor` has nothing for: parts of the upsampler, that other scales lack or shape differently.

    Returns:
        The network, in eval mode, with every tensor of `donor` that has the same name and shape.

    Raises:
        InputError: a network from elsewhere, whose scale is not known to be a setting of it.
    """
    if donor.name not in network_names():
        raise InputError(
            f"cannot take weights of another scale for {donor.name}",
            why="it is built elsewhere",
            fix="leave out network.weights_scale",
        )
    torch.manual_seed(seed)
    network = build_network(donor.name, {**dataclasses.asdict(donor.config), "scale": scale})
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    fitting = {key: value for key, value in donor.state_dict().items() if shapes.get(key) == value.shape}
    network.load_state_dict(fitting, strict=False)
    return network.eval()
