"""Loading public state dicts as they are, and saying plainly why one does not fit."""

from __future__ import annotations

from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.networks.base import StateDict


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
