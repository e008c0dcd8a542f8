"""The networks known by name. Each lives in a file of its own and is imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from odm_deploy.documents import excerpt
from odm_deploy.errors import InputError, UsageError
from odm_deploy.networks.base import StateDict, SuperResolutionNetwork
from odm_deploy.networks.config import NetworkConfig
from odm_deploy.networks.state_dict import load_state

# Network and config class by name, which is the module's, too.
_NETWORKS = {
    "edsr": ("EDSR", "EdsrConfig"),
    "rdn": ("RDN", "RdnConfig"),
    "srresnet": ("SRResNet", "SrresnetConfig"),
    "swinir": ("SwinIR", "SwinirConfig"),
}
# Not for `--network`: what it builds is said by a model.pt.
_FOREIGN = {"foreign": ("ForeignNetwork", "ForeignConfig")}


def network_names() -> list[str]:
    """Names `--network` takes."""
    return sorted(_NETWORKS)


def require_known(name: str) -> None:
    """Raise UsageError unless `name` is one of `network_names()`."""
    if name not in _NETWORKS:
        raise _unknown(name)


def build_network(name: str, config: Mapping[str, Any]) -> SuperResolutionNetwork:
    """The network `name`, or a `foreign` one, with fresh weights, from the plain values of its config class's fields.

    Raises:
        UsageError: no network of that name, or a foreign one whose builder is not trusted.
        InputError: hyper-parameters that do not fit it.
    """
    network, config_class = _classes(name)
    return network(config_class.from_dict(config))


def own_network_of(state: StateDict) -> str | None:
    """Name of this project's network that a state dict has the keys of."""
    return next((name for name in _NETWORKS if set(_classes(name)[1].telling_keys) <= set(state)), None)


def scale_of(name: str, state: StateDict) -> int:
    """The upscaling factor that the weights of the network `name` show.

    Raises:
        UsageError: no network of that name.
        InputError: the state dict is not this network's.
    """
    config = _classes(name)[1]
    if not set(config.telling_keys) <= set(state):
        # Says what is missing.
        config.from_state_dict(state, 1)
    try:
        return config.scale_of(state)
    except (LookupError, ArithmeticError, ValueError, TypeError) as error:
        raise InputError(f"not a state dict of {name}", why=f"misshapen weights ({error})") from None


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
        UsageError: no network of that name, or overrides it does not take or the state dict contradicts.
        InputError: the state dict does not fit; the line names missing, unexpected and misshapen keys.
    """
    network_class, config_class = _classes(name)
    try:
        config = config_class.from_state_dict(state, scale)
    except (LookupError, ArithmeticError, ValueError, TypeError) as error:
        # The right keys with tensors of other ranks or sizes: nothing to read hyper-parameters off.
        raise InputError(f"not a state dict of {name}", why=f"misshapen weights ({error})") from None
    if overrides:
        config = _overridden(config, config_class.sizes_of(state), overrides)
    network = network_class(config)
    load_state(network, network.own_state(state))
    return network.eval()


def _overridden(config: NetworkConfig, sizes: Mapping[str, Any], overrides: Mapping[str, Any]) -> NetworkConfig:
    """`config` with the overrides. Raises UsageError for values that it does not take, or other sizes than shown."""
    said = ", ".join(f"{key} = {excerpt(value)}" for key, value in overrides.items())
    try:
        result = type(config).from_dict({**vars(config), **overrides})
    except InputError as error:
        raise UsageError(f"cannot use {said}", why=f"{error.what}: {error.why}", fix=error.fix) from None
    for name in ("scale", *sizes):
        shown, wanted = getattr(config, name), getattr(result, name)
        # A factor such as EDSR's `residual_scale` is not seen but told by what is usual.
        if wanted != shown and not isinstance(shown, float):
            raise UsageError(f"cannot use {name} = {wanted}", why=f"the weights show {shown}", fix="leave it out")
    return result


def _classes(name: str) -> tuple[type[SuperResolutionNetwork], type[NetworkConfig]]:
    known = _NETWORKS | _FOREIGN
    if name not in known:
        raise _unknown(name)
    network, config = known[name]
    module = importlib.import_module(f"odm_deploy.networks.{name}")
    return getattr(module, network), getattr(module, config)


def _unknown(name: str) -> UsageError:
    known = [*network_names(), "spandrel"]
    close = get_close_matches(name, known, n=1)
    return UsageError(
        f"no network {name!r}",
        why=f"known by name are {', '.join(known)}",
        fix=f"did you mean {close[0]}?"
        if close
        else "leave --network out for Real-ESRGAN and all others that spandrel tells by the weights",
    )
