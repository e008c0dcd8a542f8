"""Writing to no place at all, as the masks of shifted windows do where the shift is zero (`mask[:, -8:-0] = 1`).

A trace holds it as an operator that returns its input. OpenVINO 2026.4 refuses a graph that has one: it takes what is
written, of which there is nothing, for a single number.
"""

from __future__ import annotations

from typing import Any

import torch

_WRITE: Any = torch.ops.aten.slice_scatter.default


def drop_empty_writes(program: torch.export.ExportedProgram) -> None:
    """Take from a trace, in place, the writes to slices that are empty whatever the size of the image."""
    graph = program.graph_module.graph
    dropped = [node for node in graph.nodes if node.target is _WRITE and _is_empty(node)]
    for node in dropped:
        node.replace_all_uses_with(node.args[0])  # pyright: ignore[reportArgumentType]
        graph.erase_node(node)
    if dropped:
        graph.eliminate_dead_code()
        program.graph_module.recompile()


def _is_empty(node: torch.fx.Node) -> bool:
    """Whether a `slice_scatter` that is no output itself has an end that is never behind its start."""
    given = dict(zip(("x", "written", "dim", "start", "end"), node.args, strict=False)) | node.kwargs
    start, end = given.get("start") or 0, given.get("end")
    if not isinstance(start, int) or not isinstance(end, int) or any(reader.op == "output" for reader in node.users):
        return False
    return end <= start if (start < 0) == (end < 0) else start < 0 == end
