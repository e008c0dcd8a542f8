"""Which names of TensorRT's Python module our code uses, and whether a real module has them, to be called as they are.

Nothing here says what TensorRT is like: types flow through our source by what the module's own docstrings say a call
returns, so that a name is looked up where it will be looked up, and arguments are held against the real signature.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "odm_deploy"
FILES = (
    "building/child.py",
    "runtimes/tensorrt/engine.py",
    "runtimes/tensorrt/rtx_engine.py",
    "runtimes/tensorrt/listeners.py",
    "runtimes/tensorrt/profiles.py",
    "runtimes/tensorrt/binding.py",
    "runtimes/tensorrt/kernel_cache.py",
)

RTX_ONLY = {
    "ComputeCapability",
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IExecutionContext.is_stream_capturable",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_runtime_cache",
}
"""What the code touches for TensorRT for RTX only."""

_SIGNATURE = re.compile(r"^(?:\d+\. )?\w+\((.*)\) -> (.+?)\s*$", re.MULTILINE)
_Function = ast.FunctionDef


@dataclass(frozen=True)
class Instance:
    """An object of a class of TensorRT."""

    kind: type


@dataclass(frozen=True)
class Method:
    """A method of TensorRT."""

    function: Any
    label: str
    is_bound: bool


class ApiCheck(ast.NodeVisitor):
    """One pass over a file; types found in earlier passes are kept, problems are those of the last one."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.types: dict[tuple[str, str], Any] = {}
        """(function, variable) -> what it holds; ("self", attribute) for attributes of our objects."""
        self.problems: set[str] = set()
        self.used: set[str] = set()
        self._functions: dict[str, _Function] = {}
        self._classes: list[str] = []
        self._scope = ""

    def read(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                for item in node.body:
                    if isinstance(item, _Function):
                        self._functions[node.name if item.name == "__init__" else item.name] = item
            elif isinstance(node, _Function) and node.name != "__init__":
                self._functions.setdefault(node.name, node)
        self.visit(tree)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in (self._type(base) for base in node.bases):
            if inspect.isclass(base):
                self._check_overrides(node, base)
        self._classes.append(node.name)
        self.generic_visit(node)
        self._classes.pop()

    def visit_FunctionDef(self, node: _Function) -> None:
        outer = self._scope
        self._scope = self._classes[-1] if node.name == "__init__" else node.name
        self.generic_visit(node)
        self._scope = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._bind(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._bind(node.target, node.value)
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and (found := self._type(node.value)):
            self.types["return", self._scope] = found
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._type(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._type(node)
        self.generic_visit(node)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        found = self._type(value)
        if isinstance(target, ast.Name) and found:
            self.types[self._scope, target.id] = found
        elif isinstance(target, ast.Attribute) and _is_self(target.value) and found:
            self.types["self", target.attr] = found
        elif isinstance(target, ast.Attribute) and isinstance(owner := self._type(target.value), Instance):
            found = inspect.getattr_static(owner.kind, target.attr, None)
            if isinstance(found, property) and found.fset is None:
                self.problems.add(f"{owner.kind.__name__}.{target.attr} cannot be set")

    def _type(self, node: ast.expr) -> Any:
        """What an expression is: the module, a class, an Instance or Method; None for everything not of TensorRT."""
        if isinstance(node, ast.Name):
            return self.module if node.id == "trt" else self.types.get((self._scope, node.id))
        if isinstance(node, ast.Attribute):
            if _is_self(node.value):
                return self.types.get(("self", node.attr))
            return self._member(self._type(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self._result(node)
        return None

    def _member(self, owner: Any, name: str) -> Any:
        if owner is None or isinstance(owner, Method):
            return None
        kind = owner.kind if isinstance(owner, Instance) else owner
        label = name if inspect.ismodule(kind) else f"{kind.__name__}.{name}"
        self.used.add(label)
        if not hasattr(kind, name):
            self.problems.add(f"there is no {label}")
            return None
        found = getattr(kind, name)
        if isinstance(found, property):
            return self._returned(found.fget)
        if inspect.isclass(found):
            return found
        return Method(found, label, isinstance(owner, Instance)) if callable(found) else None

    def _result(self, call: ast.Call) -> Any:
        function = self._type(call.func)
        if inspect.isclass(function):
            self._check_call(call, function.__init__, function.__name__)
            return Instance(function)
        if isinstance(function, Method):
            self._check_call(call, function.function, function.label, given_self=not function.is_bound)
            return self._returned(function.function)
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        name = self._classes[-1] if name == "cls" and self._classes else name
        if name in self._functions:
            self._pass_on(call, self._functions[name], name)
        return self.types.get(("return", name))

    def _pass_on(self, call: ast.Call, ours: _Function, name: str) -> None:
        """Parameters of our own functions hold what callers give them."""
        parameters = [item.arg for item in ours.args.args if item.arg not in ("self", "cls")]
        given = [*zip(parameters, call.args, strict=False), *((word.arg, word.value) for word in call.keywords)]
        for parameter, argument in given:
            if parameter is not None and (found := self._type(argument)):
                self.types[name, parameter] = found

    def _check_call(self, call: ast.Call, function: Any, label: str, *, given_self: bool = False) -> None:
        signatures = list(_signatures(function))
        starred = any(isinstance(item, ast.Starred) for item in call.args)
        words = {word.arg for word in call.keywords}
        count = len(call.args) - starred - given_self
        if signatures and not any(_fits(count, starred, words, each) for each, _ in signatures):
            self.problems.add(f"{label} is called with {count} and {sorted(map(str, words))}: {signatures}")

    def _check_overrides(self, ours: ast.ClassDef, base: type) -> None:
        for item in ours.body:
            if not isinstance(item, _Function) or item.name == "__init__":
                continue
            theirs = getattr(base, item.name, None)
            if theirs is None:
                self.problems.add(f"{base.__name__} calls no {item.name}")
            elif (found := list(_signatures(theirs))) and len(found[0][0]) != len(item.args.args) - 1:
                self.problems.add(f"{base.__name__}.{item.name} is called with {found[0][0]}")

    def _returned(self, function: Any) -> Any:
        for _, result in _signatures(function):
            name = re.split(r"\.|::", result)[-1]
            # Some results are named as in C++, whose interfaces begin with an I that Python's classes may lack.
            for kind in (getattr(self.module, each, None) for each in (name, name.removeprefix("I"))):
                if inspect.isclass(kind):
                    return Instance(kind)
        return None


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _signatures(function: Any) -> Iterator[tuple[list[str], str]]:
    """(parameters without self, what is returned) of each overload, from the docstring that pybind11 wrote."""
    for inside, result in _SIGNATURE.findall(function.__doc__ or ""):
        depth, parts = 0, [""]
        for letter in inside:
            depth += (letter in "([<{") - (letter in ")]>}")
            if letter == "," and depth == 0:
                parts.append("")
            else:
                parts[-1] += letter
        yield [part.strip() for part in parts if part.strip() and not part.strip().startswith("self")], result


def _fits(count: int, starred: bool, words: set[str | None], parameters: list[str]) -> bool:
    if any(item.startswith("*") for item in parameters):
        return True
    names = [item.partition(":")[0].strip() for item in parameters]
    needed = {name for name, item in zip(names, parameters, strict=True) if "=" not in item}
    covered = set(names) if starred else set(names[:count]) | words
    return count <= len(names) and words <= set(names) and needed <= covered


def check(name: str) -> ApiCheck:
    """Hold our code against an installed module."""
    result = ApiCheck(importlib.import_module(name))
    trees = [ast.parse((PACKAGE / file).read_text(encoding="utf-8")) for file in FILES]
    for _ in range(3):
        # What a function's parameters hold is known only once its callers were read.
        result.problems.clear()
        for tree in trees:
            result.read(tree)
    return result
