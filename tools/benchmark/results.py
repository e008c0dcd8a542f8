"""The measured rows as a table and a plot, and against the committed ratios."""

from __future__ import annotations

from collections.abc import Iterator
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
_RIVALS = ("NNCF", "onnxruntime.quantization")
_FLOAT = "float"
_BASE = f"{_FLOAT}, onnxruntime"
"""What every other row is compared with."""


def known_variants(document: dict[str, Any], network: str, size: tuple[int, int]) -> set[str]:
    """The variants of a network that were measured at a size (height, width)."""
    return {row["variant"] for row in document["rows"] if row["network"] == network and tuple(row["size"]) == size}


def markdown(document: dict[str, Any]) -> str:
    """Tables of all networks and sizes, fastest variant first, those that ran unsteadily last."""
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
                f"{row['speedup']:.2f}" if _is_steady(row) else UNSTEADY,
                "" if row["lost_db"] is None else f"{row['lost_db']:.3f}",
                "" if row["int8_share"] is None else f"{row['int8_share']:.1%}",
            ]
            for row in sorted(rows, key=lambda row: (not _is_steady(row), -row["speedup"]))
        ]
        text.append(f"\n### {network}, {width}x{height}\n\n{markdown_table(head, lines)}")
    return "".join(text)


def summary(document: dict[str, Any]) -> str:
    """A line for each network, size and runtime: the fastest of ours that loses no more than `UNSEEN_DB` (of random
    weights, which nobody can judge, the fastest of all), of each rival, and of float, as speeds.
    """
    head = ["network, input", "runtime", f"ours, at most {UNSEEN_DB} dB lost", *_RIVALS, _FLOAT]
    lines: list[list[str]] = []
    for (network, height, width), rows in _groups(document):
        for runtime in ("openvino", "onnxruntime"):
            here = [row for row in rows if row["variant"].partition(", ")[2].startswith(runtime)]
            ours = [row for row in here if not row["variant"].startswith((*_RIVALS, _FLOAT))]
            kinds = [[row for row in ours if (row["lost_db"] or 0.0) <= UNSEEN_DB]]
            kinds += [[row for row in here if row["variant"].startswith(kind)] for kind in (*_RIVALS, _FLOAT)]
            lines.append([f"{network}, {width}x{height}", runtime, *map(_fastest, kinds)])
    return markdown_table(head, lines)


def _fastest(rows: list[dict[str, Any]]) -> str:
    """The fastest of some rows in a cell, of those that ran steadily; empty where there are none."""
    if not rows:
        return ""
    steady = [row for row in rows if _is_steady(row)]
    if not steady:
        return UNSTEADY
    best = max(steady, key=lambda row: row["speedup"])
    name, _, runtime = best["variant"].partition(", ")
    # Some columns say the name themselves.
    words = [*([] if name in (*_RIVALS, _FLOAT) else [name]), *runtime.split()[1:]]
    told = [" ".join(words)] if words else []
    if best["lost_db"] is not None:
        # Without the sign of a loss that is none.
        told.append(f"{round(best['lost_db'], 3) + 0.0:.3f} dB")
    return f"{best['speedup']:.2f}" + (f" ({', '.join(told)})" if told else "")


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
        ordered = sorted(rows, key=lambda row: row["speedup"])
        colours = ["tab:blue" if row["int8_share"] else "0.6" for row in ordered]
        axes.barh([row["variant"] for row in ordered], [row["speedup"] for row in ordered], color=colours)
        for index, row in enumerate(ordered):
            lost = "" if row["lost_db"] is None else f"  -{max(row['lost_db'], 0):.2f} dB"
            speed = f"{row['speedup']:.2f}" if _is_steady(row) else UNSTEADY
            axes.text(row["speedup"], index, f" {speed}{lost}", va="center", fontsize=7)
        axes.set_title(f"{network}, {columns_px}x{rows_px}", fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        axes.margins(x=0.2)
    panels[-1, 0].set_xlabel("speed relative to the float network on ONNX Runtime (ours in blue)")
    save_figure(figure, path)


def worse_ratios(committed: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """A line for every speed ratio that is more than `TOLERANCE` below the committed one; rivals' count as well.

    Rows that ran unsteadily, then or now, are not compared.
    """
    known = _steady_speeds(committed)
    return [
        f"{_told(row)}: {row['speedup']:.2f} against {known[_key(row)]:.2f}"
        for row in found["rows"]
        if _is_steady(row) and _key(row) in known and row["speedup"] < known[_key(row)] * (1 - TOLERANCE)
    ]


def comparable(committed: dict[str, Any], found: dict[str, Any]) -> int:
    """How many ratios were steady both times. The float network's own, which is always 1, says nothing."""
    known = _steady_speeds(committed)
    return sum(_is_steady(row) and _key(row) in known and row["variant"] != _BASE for row in found["rows"])


def _steady_speeds(document: dict[str, Any]) -> dict[tuple[Any, ...], float]:
    return {_key(row): row["speedup"] for row in document["rows"] if _is_steady(row)}


def unsteady_rows(document: dict[str, Any]) -> list[str]:
    """A line for every row whose speed nobody should rely on."""
    lines: list[str] = []
    for row in document["rows"]:
        if not _is_steady(row):
            first, last = row["spread_ms"]
            beside = ", beside a float network that was" if last - first <= LIMIT * row["ms"] else ""
            lines.append(f"{_told(row)}, {first:.1f} to {last:.1f} ms{beside}")
    return lines


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
