"""Yes or no, learned from data once and then part of a layer's state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SavedFlag(nn.Module):
    """A fact about a layer that a resumed run has to know.

    It is a buffer, so that it is saved; and a plain bool, so that asking costs nothing: reading a buffer waits for
    the device, breaks a compiled graph in two, and cannot be part of a CUDA graph.
    """

    value: Tensor

    def __init__(self, value: bool) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(value))
        self.is_set = value
        self.register_load_state_dict_post_hook(_read)

    def set(self, value: bool) -> None:
        """Make it `value`."""
        if value != self.is_set:
            self.value.fill_(value)
            self.is_set = value


def _read(flag: SavedFlag, _keys: Any) -> None:
    flag.is_set = bool(flag.value)
