"""PyTorch's ONNX exporter without its remarks, and without what takes it long and changes nothing here.

What is left out are steps of its own that are found by name: where another version has none of that name, it works as
it would by itself.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

_QUADRATIC_RULE = "SlicesSplit"


@contextmanager
def quiet() -> Generator[None]:
    """Silence the exporter's remarks about packages it looked for and its own deprecations: no user can act on them."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def without_quadratic_rewriting() -> Generator[None]:
    """Take from the exporter's optimizer the one rule that compares every node with every other.

    It makes a Split of two slices, and for that lists all nodes of the graph at each of them, and tries all pairs of
    slices. Window attention has many slices, and nothing to gain from it.
    """
    from onnxscript import rewriter

    def others(rules: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(rule for rule in rules if rule.name != _QUADRATIC_RULE)

    with _changed(rewriter, "_DEFAULT_REWRITE_RULES", others):
        yield


@contextmanager
def without_second_trace() -> Generator[None]:
    """Let the exporter take a trace as it is where every operator in it has a translation.

    It traces each trace once more, to take operators apart that it cannot translate and to replace those that write in
    place. For a network of neither kind that is half of the time it takes, for the same graph.
    """
    from torch.onnx._internal.exporter import _fx_passes

    def where_needed(trace_again: Callable[..., Any]) -> Callable[..., Any]:
        def decompose(program: torch.export.ExportedProgram, registry: Any) -> torch.export.ExportedProgram:
            known = {meta.fx_target for metas in registry.functions.values() for meta in metas}
            called = [node.target for node in program.graph.nodes if node.op == "call_function"]
            if any(operator not in known or _writes(operator) for operator in called):
                return trace_again(program, registry)
            return program

        return decompose

    with _changed(_fx_passes, "decompose_with_registry", where_needed):
        yield


@contextmanager
def _changed(module: ModuleType, name: str, change: Callable[[Any], Any]) -> Generator[None]:
    """While this lasts, `module.name` is what `change` makes of it; a module that has none stays as it is."""
    original = getattr(module, name, None)
    if original is None:
        yield
        return
    setattr(module, name, change(original))
    try:
        yield
    finally:
        setattr(module, name, original)


def _writes(operator: Any) -> bool:
    """Whether an operator changes a tensor it is given, rather than returning a new one."""
    schema = getattr(operator, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
