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

from odm_deploy.lowering.empty_writes import drop_empty_writes

_QUADRATIC_RULE = "SlicesSplit"
_ATEN = "aten"
_WHOLE = {torch.int32, torch.int64}
_PUT_IN: set[Any] = {torch.ops.aten.scalar_tensor.default, torch.ops.prims.convert_element_type.default}
"""Operators that the exporter puts into a trace where its operators mix types."""
_LEFT_OUT: set[Any] = {torch.ops.aten._assert_tensor_metadata.default}
"""Operators of a trace that the exporter drops before it translates."""
_ON_SIZES = ("_operator::", "math::")
"""What Python's own functions, with which a trace computes sizes, are called among translations."""


def _cast(x: Any, dtype: int, *_others: Any, **_more: Any) -> Any:
    from onnxscript import opset20

    return opset20.Cast(x, to=dtype)


OWN_TRANSLATIONS: dict[Any, Callable[..., Any]] = {torch.ops.aten.to.dtype: _cast}
"""Of operators for which the exporter has no translation, though ONNX has the very same. Without, it would trace the
whole network once more to take them apart."""


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


def inline_regions(program: torch.export.ExportedProgram) -> None:
    """Put, in place, what a network computes under `no_grad`, or with autocast off, where it is computed.

    The tracer makes graphs of their own of it, which the exporter cannot translate. Gradients are nobody's business
    here, and autocast that is off, or another device's, casts nothing.
    """
    module = program.graph_module
    found = True
    while found:
        found = [node for node in module.graph.nodes if _changes_nothing(node)]
        for node in found:
            place = next(index for index, each in enumerate(node.args) if _is_part(each))
            inside = getattr(module, node.args[place].target).graph
            inputs = [each for each in inside.nodes if each.op == "placeholder"]
            values = dict(zip(inputs, node.args[place + 1 :], strict=True))
            with module.graph.inserting_before(node):
                results = module.graph.graph_copy(inside, values)
            for reader in list(node.users):
                reader.replace_all_uses_with(results[reader.args[1]])  # pyright: ignore[reportOptionalSubscript, reportIndexIssue, reportArgumentType, reportCallIssue]
                module.graph.erase_node(reader)
            module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()


def _is_part(value: Any) -> bool:
    return isinstance(value, torch.fx.Node) and value.op == "get_attr"


def _changes_nothing(node: torch.fx.Node) -> bool:
    """Whether a node runs a part of the network with other settings, which change no number of it on CPUs."""
    if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
        return True
    if node.target is torch.ops.higher_order.wrap_with_autocast:
        device, _type, is_on = node.args[:3]
        return device != "cpu" or not is_on
    return False


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
def without_second_trace(check: Callable[[torch.export.ExportedProgram], None]) -> Generator[None]:
    """Let the exporter take a trace as it is where every operator in it has a translation; else `check` the second.

    It traces each trace once more, to take operators apart that it cannot translate and to replace those that write in
    place. For a network of neither kind that is half of the time it takes, for the same graph.
    """
    from torch.onnx._internal.exporter import _fx_passes

    def where_needed(trace_again: Callable[..., Any]) -> Callable[..., Any]:
        def decompose(program: torch.export.ExportedProgram, registry: Any) -> torch.export.ExportedProgram:
            known = {meta.fx_target for metas in registry.functions.values() for meta in metas} | _LEFT_OUT
            called = [node.target for node in program.graph.nodes if node.op == "call_function"]
            if any(operator not in known or _writes(operator) for operator in called):
                again = trace_again(program, registry)
                drop_empty_writes(again)
                check(again)
                return again
            return program

        return decompose

    with _changed(_fx_passes, "decompose_with_registry", where_needed):
        yield


@contextmanager
def with_translations_of(program: torch.export.ExportedProgram) -> Generator[None]:
    """Let the exporter prepare translations of the operators that a trace calls, and of no others.

    It parses the source of all of onnxscript's five hundred, which takes half a second. Where the trace has to be
    traced again, other operators may come of it, and all are prepared.
    """
    # Translations are known once `ops` has been imported.
    from onnxscript.function_libs.torch_lib import (
        ops,  # noqa: F401  # pyright: ignore[reportUnusedImport]
        registration,
    )

    called = {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}  # pyright: ignore[reportPrivateUsage]
    others = _LEFT_OUT | set(OWN_TRANSLATIONS)
    names = {operator.name() for operator in called - others | _PUT_IN}
    known_to_it = {name for name in names if name.startswith(f"{_ATEN}:")}

    def used(registry: Any) -> Any:
        translations = dict(registry.items())
        if known_to_it - set(translations) or any(map(_writes, called)):
            return registry
        # Where types are mixed, another overload of an operator may take its place.
        kinds = {name.partition(".")[0] for name in names}
        return {
            name: each
            for name, each in translations.items()
            if name.partition(".")[0] in kinds or name.startswith(_ON_SIZES)
        }

    with _changed(registration, "default_registry", used):
        yield


@contextmanager
def without_needless_promotion() -> Generator[None]:
    """Keep the exporter from running a trace once more to convert types where operators mix none."""
    from torch.onnx._internal.exporter import _fx_passes
    from torch.onnx._internal.fx.passes import type_promotion

    def where_needed(insert: Callable[..., None]) -> Callable[..., None]:
        def inserted(graph_module: torch.fx.GraphModule) -> None:
            rules = type_promotion.TypePromotionTable()
            promoted = [
                node
                for module in graph_module.modules()
                for node in getattr(module, "graph", torch.fx.Graph()).nodes
                if node.op == "call_function" and type_promotion.get_type_promotion_rule(node, rules) is not None
            ]
            if not all(map(_is_of_one_type, promoted)):
                insert(graph_module)

        return inserted

    with _changed(_fx_passes, "insert_type_promotion_nodes", where_needed):
        yield


def _is_of_one_type(node: torch.fx.Node) -> bool:
    """Whether what an operator reads are tensors of the type of its result, and numbers of that kind; of a comparison
    whole numbers of one type.
    """
    result = node.meta.get("val")
    if not isinstance(result, torch.Tensor):
        return False
    numbers = (float,) if result.is_floating_point() else (int, torch.SymInt)
    types: set[torch.dtype] = set()
    for operand in (*node.args, *node.kwargs.values()):
        value = operand.meta.get("val") if isinstance(operand, torch.fx.Node) else operand
        if isinstance(value, torch.Tensor):
            types.add(value.dtype)
        elif isinstance(value, bool) or not isinstance(value, (*numbers, str, type(None))):
            return False
    return types == {result.dtype} or (result.dtype == torch.bool and len(types) == 1 and types <= _WHOLE)


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
