"""The measured rows as a table and a plot, and against the committed ratios.

A row's speed is that of its median if it ran steadily, or "at best", of its fastest runs, if several agree. The two are
not compared with each other: a median holds what little disturbs a machine that is steady, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolbox import import_pyplot, markdown_table, save_figure

from odm_deploy.bench.steadiness import UNSTEADY as LIMIT

TOLERANCE = 0.1
"""How much worse a ratio may be before somebody is told."""
UNSEEN_DB = 0.03
"""What our models may lose to be in the summary."""
UNSTEADY = "unsteady"
"""In place of a speed that nobody should rely on."""
AT_BEST = " at best"
"""Behind a speed of the fastest runs."""
_RIVALS = ("NNCF", "onnxruntime.quantization")
_FLOAT = "float"
_BASE = f"{_FLOAT}, onnxruntime"
"""What every other row is compared with."""


def known_variants(document: dict[str, Any], network: str, size: tuple[int, int]) -> set[str]:
    """The variants of a network that were measured at a size (height, width)."""
    return {row["variant"] for row in document["rows"] if row["network"] == network and tuple(row["size"]) == size}


def markdown(document: dict[str, Any]) -> str:
    """Tables of all networks and sizes, the fastest first, behind them those known at best, last the unsteady."""
    peaks = ", ".join(
        f"{kind} {value:.0f} {'GB/s' if kind == 'copy_gb_s' else 'GMAC/s'}"
        for kind, value in document["peaks"].items()
        if value
    )
    text = [
        f"{document['machine']} ({', '.join(document['features'])}); measured peaks: {peaks}\n\n",
        summary(document),
    ]
    for (network, height, width), rows in _groups(document):
        head = ["variant", "ms", "speed", "dB lost", "int8 share"]
        lines = [
            [
                row["variant"],
                f"{row['ms']:.1f} ({row['spread_ms'][0]:.1f} to {row['spread_ms'][1]:.1f})",
                _speed_words(row),
                "" if row["lost_db"] is None else f"{row['lost_db']:.3f}",
                "" if row["int8_share"] is None else f"{row['int8_share']:.1%}",
            ]
            for row in sorted(rows, key=_rank)
        ]
        text.append(f"\n### {network}, {width}x{height}\n\n{markdown_table(head, lines)}")
    return "".join(text)


def summary(document: dict[str, Any]) -> str:
    """A line for each network, size and runtime: the fastest of ours that loses no more than `UNSEEN_DB` (of random
    weights, which nobody can judge, the fastest of all), of each rival, and of float, as speeds.

    Where not all rows of a network and size are steady, speeds at best are compared, unless fewer rows have them.
    """
    head = ["network, input", "runtime", f"ours, at most {UNSEEN_DB} dB lost", *_RIVALS, _FLOAT]
    lines: list[list[str]] = []
    for (network, height, width), rows in _groups(document):
        steady, best = (sum(_speed(row, at_best=kind) is not None for row in rows) for kind in (False, True))
        at_best = steady < len(rows) and best >= steady
        for runtime in ("openvino", "onnxruntime"):
            here = [row for row in rows if row["variant"].partition(", ")[2].startswith(runtime)]
            ours = [row for row in here if not row["variant"].startswith((*_RIVALS, _FLOAT))]
            kinds = [[row for row in ours if (row["lost_db"] or 0.0) <= UNSEEN_DB]]
            kinds += [[row for row in here if row["variant"].startswith(kind)] for kind in (*_RIVALS, _FLOAT)]
            cells = [_fastest(kind, at_best=at_best) for kind in kinds]
            lines.append([f"{network}, {width}x{height}", runtime, *cells])
    return markdown_table(head, lines)


def _fastest(rows: list[dict[str, Any]], *, at_best: bool) -> str:
    """The fastest of some rows in a cell, by one kind of speed, or by the other where none has that."""
    for kind in (at_best, not at_best):
        speeds = [(speed, row) for row in rows if (speed := _speed(row, at_best=kind)) is not None]
        if speeds:
            return _cell(*max(speeds, key=lambda each: each[0]), at_best=kind)
    return UNSTEADY if rows else ""


def _cell(speed: float, best: dict[str, Any], *, at_best: bool) -> str:
    """A speed, with the row it is of."""
    name, _, runtime = best["variant"].partition(", ")
    # Some columns say the name themselves.
    words = [*([] if name in (*_RIVALS, _FLOAT) else [name]), *runtime.split()[1:]]
    told = [" ".join(words)] if words else []
    if best["lost_db"] is not None:
        # Without the sign of a loss that is none.
        told.append(f"{round(best['lost_db'], 3) + 0.0:.3f} dB")
    return f"{speed:.2f}{AT_BEST if at_best else ''}" + (f" ({', '.join(told)})" if told else "")


def draw(document: dict[str, Any], path: Path) -> None:
    """Speed of every variant, a panel for each network and size.

    Raises:
        MissingError: matplotlib is not installed.
    """
    pyplot = import_pyplot()
    groups = list(_groups(document))
    height = sum(len(rows) for _, rows in groups) * 0.22 + len(groups) * 0.7
    ratios = [len(rows) for _, rows in groups]
    figure, panels = pyplot.subplots(
        len(groups), 1, figsize=(8, height), height_ratios=ratios, layout="constrained", squeeze=False
    )
    for ((network, rows_px, columns_px), rows), axes in zip(groups, panels[:, 0], strict=True):
        ordered = sorted(rows, key=_shown_speed)
        colours = ["tab:blue" if row["int8_share"] else "0.6" for row in ordered]
        axes.barh([row["variant"] for row in ordered], list(map(_shown_speed, ordered)), color=colours)
        for index, row in enumerate(ordered):
            lost = "" if row["lost_db"] is None else f"  -{max(row['lost_db'], 0):.2f} dB"
            axes.text(_shown_speed(row), index, f" {_speed_words(row)}{lost}", va="center", fontsize=7)
        axes.set_title(f"{network}, {columns_px}x{rows_px}", fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        axes.margins(x=0.3)
    panels[-1, 0].set_xlabel("speed relative to the float network on ONNX Runtime (ours in blue)")
    save_figure(figure, path)


@dataclass(frozen=True)
class _Comparison:
    """A row's speed beside that of the committed one."""

    row: dict[str, Any]
    speed: float
    committed: float
    at_best: bool


def worse_ratios(committed: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """A line for every speed ratio that is more than `TOLERANCE` below the committed one; rivals' count as well."""
    return [
        f"{_told(each.row)}: {each.speed:.2f} against {each.committed:.2f}{AT_BEST if each.at_best else ''}"
        for each in _compared(committed, found)
        if each.speed < each.committed * (1 - TOLERANCE)
    ]


def comparable(committed: dict[str, Any], found: dict[str, Any]) -> tuple[int, int]:
    """How many ratios are compared, and how many of them at best. The float network's own, always 1, says nothing."""
    kinds = [each.at_best for each in _compared(committed, found) if each.row["variant"] != _BASE]
    return len(kinds), sum(kinds)


def unsteady_rows(committed: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """A line for every row that ran unsteadily and is not compared."""
    counted = {_key(each.row) for each in _compared(committed, found)}
    lines: list[str] = []
    for row in found["rows"]:
        if not _is_steady(row) and _key(row) not in counted:
            first, last = row["spread_ms"]
            beside = ", beside a float network that was" if last - first <= LIMIT * row["ms"] else ""
            lines.append(f"{_told(row)}, {first:.1f} to {last:.1f} ms{beside}")
    return lines


def _compared(committed: dict[str, Any], found: dict[str, Any]) -> Iterator[_Comparison]:
    """Medians where both rows ran steadily, else speeds at best where both have them; other rows are left out."""
    known = {_key(row): row for row in committed["rows"]}
    for row in found["rows"]:
        if _key(row) not in known:
            continue
        for at_best in (False, True):
            now, then = (_speed(each, at_best=at_best) for each in (row, known[_key(row)]))
            if now is not None and then is not None:
                yield _Comparison(row, now, then, at_best)
                break


def _speed(row: dict[str, Any], *, at_best: bool) -> float | None:
    """One kind of a row's speed, if it has that; rows of earlier versions have none at best."""
    if at_best:
        return row.get("best_speedup")
    return row["speedup"] if _is_steady(row) else None


def _shown_speed(row: dict[str, Any]) -> float:
    """Where a row's bar ends: of an unsteady one at its median where nothing better is known."""
    return _speed(row, at_best=not _is_steady(row)) or row["speedup"]


def _speed_words(row: dict[str, Any]) -> str:
    """A row's speed, or that it has none."""
    at_best = not _is_steady(row)
    speed = _speed(row, at_best=at_best)
    return UNSTEADY if speed is None else f"{speed:.2f}{AT_BEST if at_best else ''}"


def _rank(row: dict[str, Any]) -> tuple[bool, bool, float]:
    """Sorts steady rows before those known at best, and these before unsteady ones; of each kind the fastest first."""
    return not _is_steady(row), _speed_words(row) == UNSTEADY, -_shown_speed(row)


def _is_steady(row: dict[str, Any]) -> bool:
    """Whether it and what it is compared with ran steadily; rows of earlier versions do not say otherwise."""
    return bool(row.get("steady", True))


def _told(row: dict[str, Any]) -> str:
    return f"{row['network']} {row['size'][1]}x{row['size'][0]}, {row['variant']}"


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["network"], *row["size"], row["variant"]


def _groups(document: dict[str, Any]) -> Iterator[tuple[tuple[str, int, int], list[dict[str, Any]]]]:
    """The rows of each network and size, in order."""
    grouped: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in document["rows"]:
        grouped.setdefault((row["network"], *row["size"]), []).append(row)
    yield from grouped.items()
