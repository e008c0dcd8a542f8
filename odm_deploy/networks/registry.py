"""The networks known by name. Each lives in a file of its own and is imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from odm_deploy.errors import InputError, UsageError
from odm_deploy.networks.base import NetworkConfig, StateDict, SuperResolutionNetwork
from odm_deploy.networks.state_dict import load_state

# name -> module, network class, config class
_NETWORKS = {
    "edsr": ("odm_deploy.networks.edsr", "EDSR", "EdsrConfig"),
    "rdn": ("odm_deploy.networks.rdn", "RDN", "RdnConfig"),
    "srresnet": ("odm_deploy.networks.srresnet", "SRResNet", "SrresnetConfig"),
    "swinir": ("odm_deploy.networks.swinir", "SwinIR", "SwinirConfig"),
}


def network_names() -> list[str]:
    """Names `--network` takes."""
    return sorted(_NETWORKS)


def build_network(name: str, config: Mapping[str, Any]) -> SuperResolutionNetwork:
    """A network with fresh weights.

    Args:
        name: one of `network_names()`.
        config: its hyper-parameters, plain values (fields of the network's config class).

    Raises:
        UsageError: no network of that name.
        InputError: hyper-parameters that do not fit it.
    """
    network, config_class = _classes(name)
    return network(config_class.from_dict(config))  # type: ignore[call-arg]


def network_from_state_dict(
    name: str, state: StateDict, scale: int, overrides: Mapping[str, Any] | None = None
) -> SuperResolutionNetwork:
    """A network shaped like a public state dict, with its weights.

    Args:
        name: one of `network_names()`.
        state: float tensors by public key.
        scale: the upscaling factor, checked against the weights.
        overrides: hyper-parameters that a state dict does not show, by field name.

    Raises:
        UsageError: no network of that name.
        InputError: the state dict does not fit; the line names missing, unexpected and misshapen keys.
    """
    network_class, config_class = _classes(name)
    try:
        config = config_class.from_state_dict(state, scale)
    except (LookupError, ArithmeticError, ValueError, TypeError) as error:
        # The right keys with tensors of other ranks or sizes: nothing to read hyper-parameters off.
        raise InputError(f"not a state dict of {name}", why=f"misshapen weights ({error})") from None
    if overrides:
        config = config_class.from_dict({**vars(config), **overrides})
    network = network_class(config)  # type: ignore[call-arg]
    load_state(network, network.own_state(state))
    return network.eval()


def _classes(name: str) -> tuple[type[SuperResolutionNetwork], type[NetworkConfig]]:
    if name not in _NETWORKS:
        raise UsageError(f"no network {name!r}", why=f"known are {', '.join(network_names())}")
    module_name, network, config = _NETWORKS[name]
    module = importlib.import_module(module_name)
    return getattr(module, network), getattr(module, config)
