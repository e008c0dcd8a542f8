"""Reading JSON and TOML from strangers: what such a file provokes becomes one line, whatever it is.

A document is read whole, so its size is bounded; parsers that recurse are stopped by the interpreter, and what a value
of another kind than expected breaks later is an error of the file, not of the program.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from odm_deploy.errors import InputError, OdmError
from odm_deploy.kinds_of_files import why_no_file

LARGEST_BYTES = 64 << 20
"""More than any manifest, golden record or recipe has."""

_EXCERPT = 160
"""Characters of a file's own words in an error's line."""


def read_json(path: Path) -> Any:
    """The value that a JSON file in UTF-8 holds.

    Raises:
        InputError: it cannot be read, is no regular file, longer than `LARGEST_BYTES`, or not JSON; or it names a key
            twice, where one reader takes the first value and another the last.
    """
    return _parsed(path, lambda text: json.loads(text, object_pairs_hook=_of_different_keys), "JSON")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises as `read_json`."""
    return _parsed(path, tomllib.loads, "TOML")


@contextmanager
def taken_from(path: Path) -> Generator[None]:
    """While values of the document at `path` are taken apart: what goes wrong is that document's fault.

    Raises:
        InputError: for an error of any kind that is not deliberate; deliberate ones pass.
    """
    try:
        yield
    except OdmError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InputError(f"{path} is damaged", why=f"{type(error).__name__}: {excerpt(error)}") from None


def excerpt(value: object) -> str:
    """The beginning of what a foreign file says, short enough for a line."""
    text = str(value)
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}..."


def _parsed(path: Path, parse: Callable[[str], Any], language: str) -> Any:
    try:
        if why := why_no_file(path):
            raise InputError(f"cannot read {path}", why=why)
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(f"refused to read {path}", why=f"{path.stat().st_size} bytes, at most {LARGEST_BYTES}")
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}", why=str(error.strerror or error)) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged", why=f"it is not {language}: {excerpt(error)}") from None


def _of_different_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {max(counts, key=lambda key: counts[key])!r} comes twice")
    return document


def mapping_of(value: Any, what: str) -> dict[str, Any]:
    """`value` itself. Raises TypeError where it is something else: a tensor asked for a name warns, and may answer."""
    if not isinstance(value, dict):
        raise TypeError(f"{what!s:.100} is a {type(value).__name__}")
    return cast("dict[str, Any]", value)
