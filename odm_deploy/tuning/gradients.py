"""Gradients through other people's networks.

`x *= y` overwrites what autograd may have kept of x to differentiate what came before: behind a sigmoid, say, it stops
with an error. Networks that were only ever meant to run have such lines. Computed out of place they mean the same
wherever nobody else holds the old x.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_OUT_OF_PLACE: dict[str, Callable[..., Any]] = {
    "add_": Tensor.add,
    "sub_": Tensor.sub,
    "mul_": Tensor.mul,
    "div_": Tensor.div,
    "pow_": Tensor.pow,
}
"""What Python's +=, -=, *=, /= and **= call, and what gives the same in a tensor of its own."""


class _OutOfPlace(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        chosen: Callable[..., Any] = _OUT_OF_PLACE.get(getattr(func, "__name__", "")) or func
        return chosen(*args, **(kwargs or {}))


@torch.no_grad()
def differentiable(network: Callable[[Tensor], Tensor], image: Tensor) -> Callable[[], AbstractContextManager[Any]]:
    """Makes contexts to run a network in where gradients are wanted.

    Args:
        network: what is to run.
        image: what to try it on, float32 [N, 3, H, W] in 0..255: where lines such as `x *= y` are not the same out of
            place, since somebody else goes on with the old x, they stay as they are.
    """
    expected = network(image.clone())
    with _OutOfPlace():
        found = network(image.clone())
    return _OutOfPlace if torch.equal(found, expected) else nullcontext
