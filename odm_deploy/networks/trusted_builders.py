"""Building networks this project knows nothing of, by the import path of what builds them, and only with permission.

A `model.pt` holds no code. For somebody else's network it names the builder, such as `my_pkg.net:Net`, and the plain
arguments to call it with. Importing a module runs it, so a file must never decide what is imported: nothing is, unless
whoever runs the program has named that very path (`--trust my_pkg.net:Net`, or `trusting`).
"""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from odm_deploy.errors import InputError, UsageError

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class BuilderError(InputError):
    """A network cannot be built by what a model.pt names, or the user."""


class ArgumentsError(BuilderError):
    """A builder fails when it is called with the arguments that were handed in."""


class UntrustedBuilderError(UsageError):
    """A model.pt names a builder that the user has not."""


# It runs no code but this project's: what it is given is data.
_OWN_BUILDER = "odm_deploy.networks.onnx_network:OnnxNetwork"

# Paths in force, once per `trusting` block around: the same path may be trusted by nested ones.
_trusted: list[str] = []


def is_builder_path(text: str) -> bool:
    """Whether `text` has the form `package.module:Name`."""
    return _PATH.fullmatch(text) is not None


@contextmanager
def trusting(*paths: str) -> Generator[None]:
    """While this lasts, networks may be built by the builders at `paths`, each `package.module:Name`.

    Raises:
        UsageError: a path of another form.
    """
    for path in paths:
        if not is_builder_path(path):
            raise UsageError(f"--trust {path} names no builder", fix="write package.module:Name")
    _trusted.extend(paths)
    try:
        yield
    finally:
        for path in paths:
            _trusted.remove(path)


def build_module(path: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Call the builder at `path`: a class derived from `nn.Module`, or a function annotated to return one.

    Args:
        path: `package.module:Name`; must be trusted, unless it is one of spandrel's architectures or an ONNX graph.
        arguments: keyword arguments, plain values.

    Raises:
        UntrustedBuilderError: the builder is not trusted.
        BuilderError: there is no such builder, or it is no builder of modules.
        ArgumentsError: it does not take these arguments.
        MissingError: spandrel is not installed, or does not work here.
    """
    if not is_builder_path(path):
        raise BuilderError(f"{path!r} names no builder", fix="a builder is package.module:Name")
    if path not in _trusted and not is_spandrel(path) and path != _OWN_BUILDER:
        raise UntrustedBuilderError(
            f"this model is built by {path}, which is not trusted",
            why="importing it runs its code",
            fix=f"look at that code, then add --trust {path}",
        )
    builder = _find(path)
    home: object = getattr(builder, "__module__", "")
    if is_spandrel(path) and not (isinstance(builder, type) and str(home).startswith("spandrel.architectures.")):
        raise BuilderError(f"{path} is not an architecture of spandrel")
    if not _builds_modules(builder):
        raise BuilderError(
            f"{path} does not build networks",
            why="it is neither a class derived from torch.nn.Module nor a function annotated to return one",
        )
    try:
        module = builder(**arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # somebody else's code may raise anything, and even end the program
        raise ArgumentsError(f"{path} cannot be built", why=f"{type(error).__name__}: {error}"[:300]) from error
    if not isinstance(module, nn.Module):
        raise BuilderError(f"{path} does not build networks", why=f"it returned a {type(module).__name__}")
    return module


def is_spandrel(path: str) -> bool:
    """Whether a builder is one of spandrel's architectures, which its user has installed as such."""
    return re.fullmatch(r"spandrel\.architectures\.\w+:\w+", path) is not None


def _find(path: str) -> object:
    module_name, _, names = path.partition(":")
    if is_spandrel(path):
        # Not on top: it imports this module.
        from odm_deploy.networks.spandrel_models import import_spandrel

        import_spandrel()
    try:
        found: object = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # what fails may be anything in somebody else's module, such as a program's end
        raise BuilderError(
            f"cannot import {module_name}",
            why=f"{type(error).__name__}: {error}"[:300],
            fix=f"a module is named without its suffix: {module_name.removesuffix('.py')}:{names}"
            if module_name.endswith(".py")
            else "put its folder on PYTHONPATH, or install what it needs",
        ) from error
    for name in names.split("."):
        if not hasattr(found, name):
            raise BuilderError(f"there is no {path}", why=f"{module_name} has no {names}")
        found = getattr(found, name)
    return found


def _builds_modules(builder: object) -> typing.TypeGuard[Callable[..., object]]:
    """Whether a builder is one, judged without calling it."""
    result: object = builder
    if inspect.isfunction(builder):
        try:
            result = typing.get_type_hints(builder).get("return")
        except (NameError, TypeError, AttributeError):
            return False
    return isinstance(result, type) and issubclass(result, nn.Module)
