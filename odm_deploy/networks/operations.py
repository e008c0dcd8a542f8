"""Operations in a module's own code, each with a name: `add`, `add_1`, `leaky_relu`; the same in every run."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

ADDITIONS = frozenset({"add", "radd", "iadd"})
PRODUCTS = frozenset({"mul", "multiply", "rmul", "imul"})
QUOTIENTS = frozenset({"div", "divide", "true_divide", "truediv", "itruediv"})
FUNCTIONS = frozenset({"prelu", "leaky_relu", "gelu", "silu", "elu", "hardswish"})
"""Of each number alone, but for rectifiers, behind which quantizers need no place."""


def operation_of(func: Any, output: Any) -> str | None:
    """The name of a function of torch, without underscores; None where it gives anything but one tensor of floats."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    return getattr(func, "__name__", "").strip("_")


def numbered(operation: str, counts: Counter[str]) -> str:
    """The operation's name with its number, from the second one on, among those of one run, which `counts` keeps."""
    own = f"{operation}_{counts[operation]}" if counts[operation] else operation
    counts[operation] += 1
    return own
