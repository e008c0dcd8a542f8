"""What a torch file of a stranger holds, bounded by what it stores.

In a pickle one value may stand in many places. So a few bytes describe mappings of mappings that take years to walk, or
one that holds itself; and one stored tensor may be thousands of weights, each copied by whoever computes with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odm_deploy.errors import InputError

_DEEPEST = 100
"""Levels of containers; checkpoints of training codes have under ten."""
_REPEATED = 4
"""Every stored value and byte may be used so many times, as in a file of weights that is its own average, too..."""
_VALUES = 100_000
"""... and so many values..."""
_BYTES = 256 << 20
"""... and bytes besides: recursive networks name one small layer dozens of times."""


@dataclass
class _Container:
    """One that is being walked, what is left of it, and what was found in it with everything in it, spelled out."""

    name: str
    identity: int
    left: Iterator[tuple[Any, Any]]
    values: int = 1
    tensor_bytes: int = 0

    def add(self, values: int, tensor_bytes: int) -> None:
        self.values += values
        self.tensor_bytes += tensor_bytes

    def named(self, key: Any) -> str:
        return f"{self.name}.{key}"[:80] if self.name else str(key)[:80]


@dataclass
class _Seen:
    """What was met so far."""

    spelled_out: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    """Of containers that were walked, by identity: values, and bytes of tensors."""
    storages: dict[int, int] = field(default_factory=dict[int, int])
    """Bytes by address."""
    values: int = 0


def check_contents(content: Any, what: str) -> None:
    """Refuse what no checkpoint is, and what would fill more memory than it was sent with.

    Raises:
        InputError: a tensor that is not numbers in a row; containers that hold themselves or are nested too deep;
            values or tensors that stand in many more places than are stored. `what` names the file.
    """
    seen = _Seen()
    root = _Container("", 0, iter([("", content)]))
    walk = [root]
    while walk:
        top = walk[-1]
        for key, value in top.left:
            seen.values += 1
            if isinstance(value, Tensor):
                _check_tensor(value, what, top.named(key))
                seen.storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
                top.add(1, value.numel() * value.element_size())
            elif (items := _items(value)) is None:
                top.add(1, 0)
            elif id(value) in seen.spelled_out:
                top.add(*seen.spelled_out[id(value)])
            else:
                if len(walk) > _DEEPEST or any(each.identity == id(value) for each in walk):
                    why = f"{top.named(key)} holds itself, or more than {_DEEPEST} levels of others"
                    raise InputError(f"refused to read {what}", why=why)
                walk.append(_Container(top.named(key), id(value), items))
                break
        else:
            walk.pop()
            seen.spelled_out[top.identity] = top.values, top.tensor_bytes
            if walk:
                walk[-1].add(top.values, top.tensor_bytes)
    stored = sum(seen.storages.values())
    if root.values > _REPEATED * seen.values + _VALUES or root.tensor_bytes > _REPEATED * stored + _BYTES:
        raise InputError(
            f"refused to read {what}",
            why=f"it repeats itself: {root.values:.4g} values and {root.tensor_bytes:.4g} bytes of tensors made of "
            f"{seen.values} and {stored} that are stored",
        )


def _items(value: Any) -> Iterator[tuple[Any, Any]] | None:
    """Keys and values of a container; None for anything else."""
    if isinstance(value, Mapping):
        return iter(value.items())
    return iter(enumerate(value)) if isinstance(value, (list, tuple, set)) else None


def _check_tensor(tensor: Tensor, what: str, name: str) -> None:
    """Refuse a tensor that is not numbers in a row: whoever computes with one would fill memory that nobody sent."""
    if problem := _problem(tensor):
        raise InputError(f"refused to read {what}", why=f"its tensor {name} {problem}")


def _problem(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "is complex, and real weights would lose its imaginary part"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return f"is no plain one: {tensor.layout}, {tensor.dtype}, {tensor.device}"
    needed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    return f"has {tensor.numel()} elements, stored as {held} bytes" if needed > held else ""
