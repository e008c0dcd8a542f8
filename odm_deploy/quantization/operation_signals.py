"""Quantizers of what a module's own code computes, such as `x + y`, where no module makes it.

An operation has a place: a module without parameters, a part of the module whose code it is, called as
`networks.operations` calls the operation there. While the network runs, the result of each such operation goes through
the part `output` of its place. What is traced is what runs, so a graph has the quantizers that the reference has.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from odm_deploy.networks.operations import ADDITIONS, FUNCTIONS, PRODUCTS, QUOTIENTS, numbered, operation_of

_PLACED = ADDITIONS | PRODUCTS | QUOTIENTS | FUNCTIONS
OUTPUT = "output"
"""What a module calls the quantizer of its output."""


class Place(nn.Module):
    """Where an operation's quantizer is, as its part `output`; computes nothing itself."""


class _Running(threading.local):
    """The network that runs in this thread."""

    operations: _Operations | None = None


_running = _Running()


class _Operations(TorchFunctionMode):
    """Counts the operations of each module's own code, and passes some of their results through quantizers."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: list[tuple[nn.Module | None, Counter[str]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        module, counts = self.modules[-1]
        if module is None or (operation := operation_of(func, output)) is None:
            return output
        place = module._modules.get(numbered(operation, counts))  # pyright: ignore[reportPrivateUsage]
        # A mode is off while it answers, so that a quantizer's own operations are not counted.
        return place.get_submodule(OUTPUT)(output) if isinstance(place, Place) else output


@contextmanager
def aside() -> Generator[None]:
    """While this lasts, what happens is nobody's own code."""
    running = _running.operations
    if running is not None:
        running.modules.append((None, Counter()))
    try:
        yield
    finally:
        if running is not None:
            running.modules.pop()


@contextmanager
def ended_by_anything() -> Generator[None]:
    """A run of a network that nothing is left of, not even where an interruption ends it.

    Behind what is a BaseException and no Exception, torch calls none of the hooks that it always calls
    (`nn.Module.register_forward_hook`). The mode would go on in this thread, and torch's compiler traces those.
    """
    running = _running.operations
    depth = len(running.modules) if running is not None else 0
    try:
        yield
    finally:
        if running is not None:
            del running.modules[depth:]
        elif (left := _running.operations) is not None:
            _running.operations = None
            left.__exit__(None, None, None)


def place_of(network: nn.Module, name: str) -> nn.Module | None:
    """The place of the operation called `name`, made where there is none yet; None where no module could have it."""
    owner, _, own = name.rpartition(".")
    modules = dict(network.named_modules())
    operation = re.sub(r"_\d+$", "", own)
    if operation not in _PLACED or owner not in modules or (hasattr(modules[owner], own) and name not in modules):
        return None
    if name not in modules:
        modules[owner].add_module(own, Place())
    follow(network)
    return modules[owner].get_submodule(own)


def has_places(network: nn.Module) -> bool:
    """Whether any operation of a network has a place."""
    return any(isinstance(module, Place) for module in network.modules())


def drop_places(network: nn.Module) -> None:
    """Take all places off, and follow the network no longer."""
    for module in list(network.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, Place):
                delattr(module, name)
        for hooks, ours in ((module._forward_pre_hooks, _enter), (module._forward_hooks, _leave)):  # pyright: ignore[reportPrivateUsage]
            for key in [key for key, hook in hooks.items() if hook is ours]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)  # pyright: ignore[reportPrivateUsage]


def follow(network: nn.Module) -> None:
    """See to it that every module of a network, however late it came there, is known to run when it does."""
    for module in network.modules():
        if _enter not in module._forward_pre_hooks.values():  # pyright: ignore[reportPrivateUsage]
            module.register_forward_pre_hook(_enter, prepend=True)
            module.register_forward_hook(_leave, always_call=True)


def _enter(module: nn.Module, _inputs: tuple[Any, ...]) -> None:
    if _running.operations is None:
        _running.operations = _Operations()
        _running.operations.__enter__()
    _running.operations.modules.append((module, Counter()))


def _leave(_module: nn.Module, _inputs: tuple[Any, ...], _output: Any) -> None:
    running = _running.operations
    assert running is not None
    running.modules.pop()
    if not running.modules:
        _running.operations = None
        running.__exit__(None, None, None)
