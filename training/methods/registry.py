"""The methods known by name. Each lives in a file of its own and is imported when a recipe asks for it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from odm_deploy.documents import excerpt
from odm_deploy.errors import UsageError
from training.config import from_tables
from training.methods.base import Method

# name -> (module, class)
_METHODS = {
    "odm_v2": ("odm_v2", "OdmV2"),
    "odm_v1": ("odm_v1", "OdmV1"),
    "pams": ("pams", "Pams"),
    "ddtb": ("ddtb", "Ddtb"),
    "daq": ("daq", "Daq"),
    "quantsr": ("quantsr", "QuantSr"),
    "lsq": ("lsq", "Lsq"),
    "minmax": ("minmax", "MinMax"),
    "float": ("float_control", "FloatControl"),
}


def method_names() -> list[str]:
    """Names `[method] name` takes."""
    return sorted(_METHODS)


def build_method(tables: Mapping[str, Any]) -> Method[Any]:
    """The method of a recipe's `[method]`.

    Raises:
        UsageError: no method of that name.
        InputError: options it does not have, or values of another type.
    """
    name = tables.get("name")
    if not isinstance(name, str) or name not in _METHODS:
        near = get_close_matches(str(name), _METHODS, 1)
        raise UsageError(
            f"no method {excerpt(repr(name))}",
            why=f"known are {', '.join(method_names())}",
            fix=f"did you mean {near[0]}?" if near else "",
        )
    module, class_name = _METHODS[name]
    kind: type[Method[Any]] = getattr(importlib.import_module(f"training.methods.{module}"), class_name)
    return kind(from_tables(kind.Options, {key: value for key, value in tables.items() if key != "name"}, "method"))
