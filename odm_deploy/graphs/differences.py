"""Where two ONNX graphs are not the same: in their wiring, or in the constants that stand in one place of it.

Both are followed side by side, from their outputs back to their inputs. Names do not matter, nor does the order of
nodes: two tensors are the same if equal operators compute them from tensors that are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from odm_deploy.graphs.index import GraphIndex

ROUNDING = 1e-6
"""Distance, relative to the largest value of a constant, that is rounding where somebody summed it in float32."""

_EXCERPT = 60
_SHOWN = (AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.STRING, AttributeProto.INTS, AttributeProto.FLOATS)


@dataclass
class GraphDifferences:
    """What `differences` found."""

    wiring: list[str] = field(default_factory=list[str])
    """Where other operators, attributes or tensors stand, one clause each, from the output on; what lies behind such a
    place is not compared any more."""
    constants: list[str] = field(default_factory=list[str])
    """Constants that are others, one clause each, with both values."""
    compared: int = 0
    """Places with a constant that were compared."""
    names: dict[str, str] = field(default_factory=dict[str, str])
    """Of computed tensors, inputs included, the name in the expected graph -> that of the one in its place."""

    def __bool__(self) -> bool:
        return bool(self.wiring or self.constants)


def differences(
    found: ModelProto, expected: ModelProto, rounded: Callable[[str], bool] = lambda name: False
) -> GraphDifferences:
    """Compare a graph with the one that it should be; constants bit for bit.

    Args:
        found: the graph in question, with its external data inside.
        expected: what it should be; clauses use its names.
        rounded: tells of constants, by name, whose last digits are not fixed, and which may be `ROUNDING` apart.
    """
    return _Comparison(found, expected, rounded).run()


class _Side:
    """One of the two graphs."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.index = GraphIndex(model.graph)
        self.inputs = {value.name: place for place, value in enumerate(model.graph.input)}

    def constant(self, name: str) -> bool:
        """Whether the file holds a tensor's value, and nobody can give it another."""
        return name in self.index.stored and name not in self.inputs

    def producer(self, name: str) -> NodeProto | None:
        return self.index.producers.get(name)


class _Comparison:
    def __init__(self, found: ModelProto, expected: ModelProto, rounded: Callable[[str], bool]) -> None:
        self._found, self._expected, self._rounded = _Side(found), _Side(expected), rounded
        self._result = GraphDifferences()
        self._constants: set[tuple[str, str]] = set()

    def run(self) -> GraphDifferences:
        self._compare_edges()
        ends = (side.model.graph.output for side in (self._found, self._expected))
        waiting = [(a.name, b.name) for a, b in zip(*ends, strict=False)]
        while waiting:
            waiting += self._compare(*waiting.pop())
        return self._result

    def _compare_edges(self) -> None:
        """Inputs, outputs, and which operators are meant by the names of operators."""
        found, expected = self._found.model, self._expected.model
        for what in ("input", "output"):
            shown = [[_described(value) for value in getattr(model.graph, what)] for model in (found, expected)]
            if shown[0] != shown[1]:
                self._other(f"its {what}s", *map(", ".join, shown))
        versions = [
            {each.domain or "ai.onnx": each.version for each in model.opset_import} for model in (found, expected)
        ]
        if versions[0] != versions[1]:
            self._other("its operators' versions", *map(str, versions))
        if found.functions:
            self._other("its functions", found.functions[0].name, "none")
        for name in _named_twice(found.graph)[:1]:
            # Which of the two is meant is for each runtime to choose.
            self._other("its names", f"two of {name}", "one of each")

    def _compare(self, found: str, expected: str) -> Iterator[tuple[str, str]]:
        """Compare one tensor with what should be in its place; returns what is to be compared next."""
        if self._found.constant(found) and self._expected.constant(expected):
            self._compare_constants(found, expected)
            return
        if not found and not expected:
            return
        if expected in self._result.names:
            if self._result.names[expected] != found:
                self._other(f"one tensor {expected}", "two", "one")
            return
        self._result.names[expected] = found
        a, b = self._found.producer(found), self._expected.producer(expected)
        if a is None or b is None or self._found.constant(found) or self._expected.constant(expected):
            if (place := self._expected.inputs.get(expected)) is None or self._found.inputs.get(found) != place:
                self._other(expected, self._kind(self._found, found), self._kind(self._expected, expected))
        elif self._same_operator(found, a, b, expected):
            yield from zip(_given(a), _given(b), strict=True)

    def _same_operator(self, found: str, a: NodeProto, b: NodeProto, expected: str) -> bool:
        where = b.name or expected
        kinds = [f"{node.domain or 'ai.onnx'}.{node.op_type}".removeprefix("ai.onnx.") for node in (a, b)]
        if kinds[0] != kinds[1]:
            self._other(where, *kinds)
            return False
        if list(a.output).index(found) != list(b.output).index(expected):
            self._other(where, f"output {found} of it", f"output {expected}")
            return False
        stated = [{each.name: each for each in node.attribute} for node in (a, b)]
        for name in sorted({*stated[0], *stated[1]}):
            values = [_plain(each.get(name)) for each in stated]
            if name == "kernel_shape" and None in values:
                # Who leaves it out means the weights' own, and their shapes are compared.
                continue
            if values[0] != values[1]:
                self._other(f"{name} of {where}", *(_value(each.get(name)) for each in stated))
        counts = [len(_given(node)) for node in (a, b)]
        if counts[0] != counts[1]:
            self._other(where, *(f"{count} inputs" for count in counts))
        return counts[0] == counts[1]

    def _compare_constants(self, found: str, expected: str) -> None:
        if (found, expected) in self._constants:
            return
        self._constants.add((found, expected))
        self._result.compared += 1
        a, b = self._found.index.stored_value(found), self._expected.index.stored_value(expected)
        if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
            kinds = ("unreadable" if each is None else f"{each.dtype} {list(each.shape)}" for each in (a, b))
            self._result.constants.append("{} is {} instead of {}".format(expected, *kinds))
        elif a.tobytes() != b.tobytes() and not (self._rounded(expected) and _near(a, b)):
            self._result.constants.append(_first_other(expected, a, b))

    def _kind(self, side: _Side, name: str) -> str:
        node = side.producer(name)
        if not name or node is not None:
            return "nothing" if node is None else f"what {node.op_type} computes"
        return "an input" if name in side.inputs else "a constant" if side.constant(name) else "nothing"

    def _other(self, where: str, found: str, expected: str) -> None:
        self._result.wiring.append(f"{where}: {found[:_EXCERPT]} instead of {expected[:_EXCERPT]}")


def _named_twice(graph: GraphProto) -> list[str]:
    """Names of tensors that are stored or computed more than once."""
    stored = [*(each.name for each in graph.initializer), *(each.values.name for each in graph.sparse_initializer)]
    counts = Counter([*stored, *(name for node in graph.node for name in node.output if name)])
    return [name for name, count in counts.items() if count > 1]


def _given(node: NodeProto) -> list[str]:
    """A node's inputs without the optional ones at their end that are not given."""
    names = list(node.input)
    while names and not names[-1]:
        names.pop()
    return names


def _described(value: ValueInfoProto) -> str:
    """Type and fixed sizes of an input or output; ? stands for sizes that are open."""
    kind = value.type.tensor_type
    sizes = [str(dim.dim_value) if dim.HasField("dim_value") else "?" for dim in kind.shape.dim]
    return f"{helper.tensor_dtype_to_string(kind.elem_type).partition('.')[2].lower()} [{', '.join(sizes)}]"


def _plain(attribute: AttributeProto | None) -> bytes | None:
    """An attribute as bytes that are equal where it is."""
    if attribute is None:
        return None
    plain = AttributeProto()
    plain.CopyFrom(attribute)
    plain.ClearField("doc_string")
    return plain.SerializeToString(deterministic=True)


def _value(attribute: AttributeProto | None) -> str:
    """An attribute's value for people."""
    if attribute is None:
        return "none"
    if attribute.type not in _SHOWN:
        return "another"
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value[:_EXCERPT].decode("utf-8", "replace")
    return str(value[:_EXCERPT] if isinstance(value, list) else value)


def _near(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.dtype.kind != "f" or not a.size:
        return False
    return bool(np.abs(a.astype(np.float64) - b).max() <= ROUNDING * np.abs(b).max())


def _first_other(name: str, a: NDArray[Any], b: NDArray[Any]) -> str:
    """The first value that is another, with as many digits as tell the two apart."""
    raw = f"V{a.dtype.itemsize}"
    other = np.ascontiguousarray(a).reshape(-1).view(raw) != np.ascontiguousarray(b).reshape(-1).view(raw)
    place = int(np.argmax(other))
    at = f"[{', '.join(str(int(each)) for each in np.unravel_index(place, a.shape))}]" if a.ndim else ""
    count = f" ({int(other.sum())} of {a.size} values differ)" if a.size > 1 else ""
    return f"{name}{at} is {a.reshape(-1)[place]!s} instead of {b.reshape(-1)[place]!s}{count}"
