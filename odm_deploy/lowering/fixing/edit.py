"""Editing a graph so that every tensor keeps its name: what is corrected behind an operator takes the name over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from odm_deploy.graphs.editor import GraphEditor


class Rewriter(GraphEditor):
    """Adds and replaces nodes of one graph."""

    def floats(self, name: str, array: npt.ArrayLike) -> ir.Value:
        """A float32 initializer."""
        return self.constant(name, array, np.float32)

    def before(
        self,
        anchor: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: Mapping[str, object] | None = None,
    ) -> ir.Value:
        """The output of a new float node in front of `anchor`."""
        return self.node_before(anchor, op, inputs, name, attributes)

    def behind(self, value: ir.Value, op: str, operand: ir.Value) -> None:
        """Let all that read `value` read `op(value, operand)` instead, which takes its name over."""
        users = [(use.node, use.idx) for use in value.uses()]
        producer = value.producer()
        assert producer is not None
        node = ir.node(op, [value, operand])
        self.graph.insert_after(producer, node)
        for user, index in users:
            user.replace_input_with(index, node.outputs[0])
        self.take_over(value, node.outputs[0])
        node.name = f"{node.outputs[0].name}/{op}"

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let all that read `old` read `new` instead, which takes its name over."""
        for use in list(old.uses()):
            use.node.replace_input_with(use.idx, new)
        self.take_over(old, new)

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Give `new` the name of `old`, and its place among the graph's outputs."""
        assert old.name is not None
        name = old.name
        old.name = self._unique(f"{name}.before")
        new.name, new.type, new.shape = name, old.type, old.shape
        for index, output in enumerate(self.graph.outputs):
            if output is old:
                self.graph.outputs[index] = new

    def remove_dead(self) -> None:
        """Remove nodes and constants that nothing reads."""
        outputs = {id(value) for value in self.graph.outputs}
        for node in reversed(list(self.graph)):
            if not any(value.uses() or id(value) in outputs for value in node.outputs):
                self.graph.remove(node, safe=True)
        self.drop_unused_constants()


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Value of a node's attribute."""
    return node.attributes[name].value if name in node.attributes else default


def set_attribute(node: ir.Node, name: str, values: Sequence[int]) -> None:
    """Set a list of integers."""
    node.attributes[name] = ir.AttrInt64s(name, list(values))
