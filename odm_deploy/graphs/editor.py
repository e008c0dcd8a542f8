"""Small tools for editing an ONNX graph that several passes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


class GraphEditor:
    """Adds constants and nodes to one graph under readable, unique names."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        taken = [value.name for node in graph for value in node.outputs]
        self._taken = {name for name in (*taken, *graph.initializers) if name}

    def constant(self, name: str, array: npt.ArrayLike, dtype: npt.DTypeLike) -> ir.Value:
        """An initializer. A scalar stays a scalar: a scale of shape [1] makes TensorRT fall back to float."""
        name = self._unique(name)
        array = np.asarray(array, dtype=dtype)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def node_before(
        self,
        anchor: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        output: str,
        attributes: Mapping[str, object] | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        """A new node in front of `anchor`; its only output, named `output`."""
        node = ir.node(op, inputs, attributes=attributes or {})  # type: ignore[arg-type]
        value = node.outputs[0]
        value.name = self._unique(output)
        value.dtype = dtype
        node.name = f"{value.name}/{op}"
        self.graph.insert_before(anchor, node)
        return value

    def drop_unused_constants(self) -> None:
        """Remove initializers that nothing reads any more."""
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._taken:
            candidate, count = f"{name}_{count}", count + 1
        self._taken.add(candidate)
        return candidate


def constant_array(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """The array behind an initializer; None for anything computed."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The single node that reads `value`; None when there are none or several."""
    consumers = list({id(use.node): use.node for use in value.uses()}.values())
    return consumers[0] if len(consumers) == 1 else None


def replace_node(old: ir.Node, new: ir.Value) -> None:
    """Let everything that read `old`'s output read `new` instead, and remove `old`; an output keeps name and shape."""
    result = old.outputs[0]
    if result.is_graph_output():
        name = result.name
        result.name = f"{name}.replaced"
        new.name, new.shape = name, result.shape
    result.replace_all_uses_with(new, replace_graph_outputs=True)
    assert old.graph is not None
    old.graph.remove(old, safe=True)
