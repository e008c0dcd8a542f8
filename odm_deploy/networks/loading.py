"""From a file of float weights to a network: its architecture and scale told from the weights where they say.

Every command that takes float weights reads them here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odm_deploy.documents import excerpt
from odm_deploy.errors import InputError, MissingError, OdmError, UsageError
from odm_deploy.networks.base import StateDict, SuperResolutionNetwork
from odm_deploy.networks.config import is_finite
from odm_deploy.networks.folding import fold_branches
from odm_deploy.networks.foreign import ForeignConfig, foreign_network
from odm_deploy.networks.registry import network_from_state_dict, own_network_of, require_known, scale_of
from odm_deploy.networks.spandrel_models import UnknownNetworkError, network_from_spandrel
from odm_deploy.networks.state_dict import load_state
from odm_deploy.networks.trusted_builders import ArgumentsError, build_module, is_builder_path, is_spandrel, trusting
from odm_deploy.networks.weight_files import check_finite, read_weights

INPUT_SETTINGS = ("input_range", "channel_order")
"""Settings that say how images go into a network that is not this project's."""
_OTHER_WEIGHTS = {
    "lora_": "a LoRA, which only changes another network",
    "diffusion_model.": "a diffusion model, which runs many times for one image",
}
"""Weights that lie beside those of upscalers on the same pages, by a part of their keys."""


def load_network(
    path: Path | str,
    *,
    network: str | None = None,
    scale: int | None = None,
    settings: Mapping[str, Any] = {},
) -> SuperResolutionNetwork:
    """The network whose float weights a file holds, in eval mode on the CPU.

    Args:
        path: a float ONNX file, or what `torch.save` or safetensors wrote: a state dict, plain or within the wrappers
            that training codes put around it. Averaged weights are preferred to what they average.
        network: the architecture, where the weights do not say: a name of `network_names()`; `spandrel`, which tells
            its own; or the import path of a builder, `package.module:Name`, whose code is then run. None tells it by
            the keys: this project's networks first, then spandrel's.
        scale: the upscaling factor, checked against the weights; None takes theirs.
        settings: what weights do not show, by name: hyper-parameters of the architecture; for networks that are not
            this project's `input_range` (1 or 255) and `channel_order` (rgb or bgr); a builder's keyword arguments.

    Raises:
        UsageError: no network of that name, or a setting or a value of one that it does not take.
        InputError: the file is unusable, nobody knows the architecture, or the weights do not fit it.
        MissingError: spandrel, which may know it, or safetensors, is not installed or does not work here.
    """
    _check_input_settings(settings)
    if Path(path).suffix.lower() == ".onnx":
        return _of_onnx(path, network, scale, settings)
    if network is not None and not is_builder_path(network):
        network = network.lower()
        if network != "spandrel":
            require_known(network)
    readings = read_weights(path)
    if network is None:
        state, loaded = _recognised(path, readings, scale, settings)
    elif network == "spandrel":
        state, loaded = _of_spandrel(path, readings, scale, settings)
    elif is_builder_path(network):
        state, loaded = _built(network, readings, scale, settings)
    else:
        state = next((reading for reading in readings if own_network_of(reading) == network), readings[0])
        loaded = network_from_state_dict(network, state, scale or scale_of(network, state), settings)
    check_finite(state, path)
    return loaded


def _check_input_settings(settings: Mapping[str, Any]) -> None:
    """Raise UsageError for values that `INPUT_SETTINGS` have in no network."""
    for name, value in settings.items():
        fix = ""
        if name == "input_range" and not (type(value) in (int, float) and value > 0 and is_finite(value)):
            fix = "white is usually 1 or 255"
        if name == "channel_order" and str(value).lower() not in ("rgb", "bgr"):
            fix = "it is rgb or bgr"
        if fix:
            raise UsageError(f"cannot use {name} = {excerpt(value)}", fix=fix)


def _of_onnx(
    path: Path | str, network: str | None, scale: int | None, settings: Mapping[str, Any]
) -> SuperResolutionNetwork:
    from odm_deploy.networks.onnx_files import network_from_onnx

    if network is not None:
        raise UsageError(f"--network {network} with an ONNX file", why="the file says what to compute")
    if unknown := sorted(set(settings) - set(INPUT_SETTINGS)):
        raise UsageError(f"--set {', '.join(unknown)} says nothing to an ONNX file")
    return network_from_onnx(path, scale, **dict(settings))


def load_same(path: Path | str, like: SuperResolutionNetwork) -> SuperResolutionNetwork:
    """The float weights in a file, in a network like one that is at hand, such as a quantized model's.

    Raises:
        InputError, UsageError, MissingError: as `load_network`, also where the weights are another network's.
    """
    if not isinstance(like.config, ForeignConfig):
        return load_network(path, network=like.name, scale=like.scale)
    config = like.config
    settings = {name: getattr(config, name) for name in INPUT_SETTINGS}
    if Path(path).suffix.lower() == ".onnx":
        return load_network(path, scale=like.scale, settings=settings)
    if is_spandrel(config.builder):
        try:
            return load_network(path, network="spandrel", scale=like.scale, settings=settings)
        except UnknownNetworkError as error:
            # What helps there, naming the network, would not: it is known.
            raise InputError(
                f"{path} holds another network's weights",
                why="spandrel does not know them, and the model at hand is one of its networks",
                fix="give those that it was made of",
            ) from error
    return load_network(path, network=config.builder, scale=like.scale, settings={**config.arguments, **settings})


Found = tuple[StateDict, SuperResolutionNetwork]
"""The reading that was one, and the network it is the weights of."""


def _recognised(path: Path | str, readings: list[StateDict], scale: int | None, settings: Mapping[str, Any]) -> Found:
    refused: OdmError | None = None
    for reading in readings:
        name = own_network_of(reading)
        if name is None:
            continue
        try:
            return reading, network_from_state_dict(name, reading, scale or scale_of(name, reading), settings)
        except (InputError, UsageError) as error:
            # A variant of the architecture that spandrel may know; if not, what is said here is worth more.
            refused = error
    try:
        return _of_spandrel(path, readings, scale, settings)
    except OdmError as error:
        if refused is not None:
            raise refused from None
        if isinstance(error, MissingError):
            why = f"it is none of this project's, and {error.what}: {error.why}"
            raise MissingError(f"cannot tell the network of {path}", why=why, fix=error.fix) from None
        raise


def _of_spandrel(path: Path | str, readings: list[StateDict], scale: int | None, settings: Mapping[str, Any]) -> Found:
    if unknown := sorted(set(settings) - set(INPUT_SETTINGS)):
        raise UsageError(
            f"--set {', '.join(unknown)} says nothing here",
            why="spandrel reads all hyper-parameters off the weights",
            fix=f"set {' or '.join(INPUT_SETTINGS)} only",
        )
    refused: InputError | None = None
    for reading in readings:
        try:
            return reading, network_from_spandrel(reading, scale, **dict(settings))
        except UnknownNetworkError:
            continue
        except InputError as error:
            # Keys may look like a network's before a wrapper's are taken away.
            refused = refused or error
    if refused is not None:
        raise refused
    keys = list(readings[0])
    if other := next((words for mark, words in _OTHER_WEIGHTS.items() if any(mark in key for key in keys)), None):
        raise UnknownNetworkError(
            f"{path} is {other}", why=f"by keys such as {keys[0]}", fix="take weights of a network that enlarges images"
        )
    raise UnknownNetworkError(
        f"nobody knows the network of {path}",
        why=f"neither this project nor spandrel does, by keys such as {', '.join(keys[:3])}",
        fix="name what builds it: --network package.module:Name, with its folder on PYTHONPATH",
    )


def _built(path: str, readings: list[StateDict], scale: int | None, settings: Mapping[str, Any]) -> Found:
    arguments = {key: value for key, value in settings.items() if key not in INPUT_SETTINGS}
    of_input = {key: value for key, value in settings.items() if key in INPUT_SETTINGS}
    try:
        with trusting(path):
            module = build_module(path, arguments).eval()
    except ArgumentsError as error:
        said = "; ".join(f"{key} = {excerpt(value)}" for key, value in arguments.items()) or "no arguments"
        raise UsageError(f"{path} cannot be built with {said}", why=error.why, fix="see what it takes") from error
    own = set(module.state_dict())
    # The reading that shares most keys with the network is the one whose differences are worth reading about.
    state = max(readings, key=lambda reading: 2 * len(own & set(reading)) - len(reading))
    if is_spandrel(path) and not own <= set(state):
        # Weights of what its authors deploy.
        fold_branches(module)
    load_state(module, state)
    if is_spandrel(path):
        fold_branches(module)
    return state, foreign_network(module, builder=path, arguments=arguments, scale=scale, **of_input)
