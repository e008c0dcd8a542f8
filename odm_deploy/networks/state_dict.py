"""Reading public state dicts as they are, and saying plainly why one does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.networks.base import StateDict
from odm_deploy.torch_files import read_torch_file

# Wrappers that training codes put around the weights, best first: an EMA is what was meant to be used.
_WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "model", "net", "generator")
_PREFIXES = ("module.", "model.", "net.", "generator.")


def read_state_dict(path: Path | str) -> StateDict:
    """Float tensors by key, from a `.pt`/`.pth` file, with wrappers and common prefixes removed.

    Raises:
        InputError: missing, damaged or hostile file, no tensors in it, or weights that are NaN or infinite.
    """
    content: Any = read_torch_file(path)
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} is not a state dict", why=f"it holds a {type(content).__name__} without tensors")
    if content.get("format") == "odm-deploy model":
        raise InputError(f"{path} is already quantized", why="it is a model.pt", fix="use it with `odm-deploy export`")
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise InputError(f"{path} is not a state dict", why=f"keys {', '.join(map(str, list(content)[:5]))}")
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise InputError(
                f"{path} holds broken weights",
                why=f"{key}: {bad} of {value.numel()} values are NaN or infinite",
                fix="use an earlier checkpoint",
            )
    return state


def load_state(network: nn.Module, state: StateDict) -> None:
    """Load `state` into `network`, every key exactly once.

    Raises:
        InputError: naming missing, unexpected and misshapen keys, and transposed weights.
    """
    own = network.state_dict()
    # Batch counters exist in some files and not in others and carry no weight.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    # Mean shifts are constants of the network; some files leave them out.
    missing = [key for key in missing if not key.startswith(("sub_mean.", "add_mean."))]
    unexpected = [key for key in state if key not in own]
    misshapen = [
        f"{key} is {list(state[key].shape)}, expected {list(own[key].shape)}{_transposed(state[key], own[key])}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unexpected or misshapen:
        problems = [
            f"{len(keys)} {kind} ({', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''})"
            for kind, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
            if keys
        ]
        raise InputError(
            f"the weights do not fit {type(network).__name__}",
            why="; ".join(problems),
            fix="check the network, the scale and the hyper-parameters",
        )
    network.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in state.items()}, strict=False
    )


def _transposed(found: Tensor, expected: Tensor) -> str:
    swapped = found.dim() >= 2 and found.transpose(0, 1).shape == expected.shape
    return " (input and output channels swapped?)" if swapped else ""
