"""Recipe files: TOML that may extend other files, `--set` on top of it, and the places that paths in it name.

A recipe may say `extends = "other.toml"` (relative to itself) and then lists only what differs; of several,
`extends = ["method.toml", "budget.toml"]`, later ones win.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from odm_deploy.documents import mapping_of, read_json, read_toml, taken_from
from odm_deploy.errors import InputError, UsageError
from training.config import from_tables
from training.methods.registry import build_method
from training.recipe import Recipe

SHORTHANDS = {"bits": "quantization.body", "method": "method.name", "network": "network.name"}
"""What `--set` also understands."""

_METHOD_NAME = ["method", "name"]

_PLACES = {"{data}": ("ODM_DATA", "../shared/data"), "{weights}": ("ODM_WEIGHTS", "../shared/weights")}


def load_recipe(path: Path | str, overrides: list[str]) -> Recipe:
    """A recipe from its file, with `--set` overrides applied (see `apply_overrides`).

    Raises:
        InputError: an unreadable recipe, unknown keys, values of another type.
        UsageError: overrides that cannot be read or are of that kind, values out of range.
    """
    return _with_overrides(read_recipe(path), overrides)


def load_run(folder: Path, overrides: list[str]) -> Recipe:
    """The recipe of a run that is there, from its config.json, with `--set` overrides applied.

    Raises:
        InputError: no config.json there, or one that cannot be read.
        UsageError: as `load_recipe`.
    """
    path = folder / "config.json"
    if not path.exists():
        fix = "name a run's folder, or its recipe"
        raise InputError(f"{folder} is no folder of a training run", why="it holds no config.json", fix=fix)
    with taken_from(path):
        return _with_overrides(mapping_of(read_json(path), "a recipe"), overrides)


def _with_overrides(tables: Mapping[str, Any], overrides: list[str]) -> Recipe:
    merged = apply_overrides(tables, overrides)
    try:
        return _checked(merged)
    except InputError as error:
        # Raises where it is the recipe itself.
        _checked(tables)
        raise UsageError(error.what, why=error.why, fix=error.fix) from None


def _checked(tables: Mapping[str, Any]) -> Recipe:
    """The recipe in `tables`, whose method takes the options it names. Raises as `load_recipe`."""
    recipe = from_tables(Recipe, tables)
    build_method(recipe.method)
    return recipe


def apply_overrides(tables: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`tables` with each `section.key=value` applied, whose right-hand side is TOML, or a text where it is not TOML.

    `bits`, `method` and `network` are short for what `SHORTHANDS` says. A method drops the options of another one that
    `tables` name, but none of the overrides.

    Raises:
        UsageError: an override that is not of that form, or that goes through a value; the line names a key like it.
    """
    result = _merge({}, tables)
    for text, (*sections, key), value in sorted(map(_parsed, overrides), key=lambda each: each[1] != _METHOD_NAME):
        table = result
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise UsageError(f"cannot read --set {text}", why=f"{section} is a value, not a section")
        if [*sections, key] == _METHOD_NAME and table.get(key) != value:
            table.clear()
        table[key] = value
    return result


def _parsed(text: str) -> tuple[str, list[str], Any]:
    """An override, its dotted key in parts, and its value."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if key in SHORTHANDS:
        return text, SHORTHANDS[key].split("."), str(_toml_value(value))
    parts = key.split(".")
    if equals and len(parts) > 1 and all(parts):
        return text, parts, _toml_value(value)
    spellings = {name: name for name in SHORTHANDS} | {
        setting.name: f"{section.name}.{setting.name}"
        for section in fields(Recipe)
        if is_dataclass(section.default)
        for setting in fields(section.default)
    }
    near = get_close_matches(key, spellings, 1) if equals else []
    if near:
        raise UsageError(f"cannot read --set {text}", fix=f"did you mean {spellings[near[0]]}={value}?")
    raise UsageError(f"cannot read --set {text}", fix="write --set section.key=value, e.g. run.iterations=200")


def expand_places(path: str) -> Path:
    """A path with `{data}` and `{weights}` replaced by $ODM_DATA and $ODM_WEIGHTS (default ../shared/...)."""
    for placeholder, (variable, default) in _PLACES.items():
        path = path.replace(placeholder, os.environ.get(variable, default))
    return Path(path).expanduser()


def existing_place(path: str, setting: str) -> Path:
    """`expand_places` of the value of `setting`, a key of recipes or an option, where that is there.

    Raises:
        InputError: it is not; the line says what stands for `{data}` or `{weights}` and how to point elsewhere.
    """
    place = expand_places(path)
    if place.exists() or any(letter in place.name for letter in "*?["):
        return place
    elsewhere = f"{setting} PATH" if setting.startswith("--") else f"--set {setting}=PATH"
    why, fix = "no such file or folder", f"point elsewhere with {elsewhere}"
    for placeholder, (variable, default) in _PLACES.items():
        if placeholder in path:
            root = os.environ.get(variable)
            stands = f"{placeholder} is {root}, from {variable}" if root else f"{placeholder} is {default}"
            why = f"{stands}{'' if root else f', because {variable} is not set'}"
            fix = f"set {variable} to the folder that holds {path.removeprefix(placeholder + '/')}, or {fix}"
    raise InputError(f"cannot find {place}", why=why, fix=fix)


def read_recipe(path: Path | str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of a recipe, merged over what it extends; `seen` are the recipes that led here.

    Raises:
        InputError: missing file, not TOML, or recipes that extend each other in a circle.
    """
    path = Path(path)
    resolved = path.resolve()
    if resolved in seen:
        raise InputError(f"{path} extends itself", why=" -> ".join(item.name for item in (*seen, resolved)))
    tables = read_toml(path)
    extends = tables.pop("extends", [])
    bases = cast("list[Any]", extends if isinstance(extends, list) else [extends])
    merged: dict[str, Any] = {}
    for base in bases:
        if not isinstance(base, str):
            raise InputError(f"cannot read {path}", why=f"extends = {extends!r} is not a file name or a list of them")
        merged = _merge(merged, read_recipe(path.parent / base, (*seen, resolved)))
    return _merge(merged, tables)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, section by section. A section that names another `name` starts afresh.

    Options of one method mean nothing to another, so `[method] name = "pams"` drops those of the base recipe.
    """
    result = {key: _merge(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in over.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            fresh = "name" in value and value["name"] != below.get("name")
            result[key] = _merge({} if fresh else below, value)
        else:
            result[key] = _merge(value, {}) if isinstance(value, Mapping) else value
    return result


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
