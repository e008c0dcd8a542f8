"""Where two ONNX graphs are not the same: in their wiring, or in the constants that stand in one place of it.

Both are followed side by side, from their outputs back to their inputs. Names do not matter, nor does the order of
nodes: two tensors are the same if equal operators compute them from tensors that are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from odm_deploy.graphs.index import GraphIndex

ROUNDING = 1e-6
"""Distance, relative to the largest value of a constant, that is rounding where somebody summed it in float32."""

_EXCERPT = 60
_NUMBERS = (AttributeProto.FLOAT, AttributeProto.FLOATS, AttributeProto.TENSOR)
_SHOWN = (AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.STRING, AttributeProto.INTS, AttributeProto.FLOATS)


@dataclass
class GraphDifferences:
    """What `differences` found."""

    wiring: list[str] = field(default_factory=list[str])
    """Where other operators, attributes or tensors stand, one clause each, from the output on; what lies behind such a
    place is not compared any more."""
    constants: list[str] = field(default_factory=list[str])
    """Constants that are others, one clause each, with both values."""
    pairs: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """Constants that were compared: the name of the one found, and of the one expected."""
    names: dict[str, str] = field(default_factory=dict[str, str])
    """Of computed tensors, inputs included, the name in the expected graph -> that of the one in its place."""

    def __bool__(self) -> bool:
        return bool(self.wiring or self.constants)


Allow = Callable[[str, NDArray[Any], NDArray[Any]], bool]
"""Whether a constant may be another: takes the name of the expected one, the value found, and the one expected."""


def differences(
    found: ModelProto,
    expected: ModelProto,
    allow: Allow = lambda name, a, b: False,
    anchors: Sequence[tuple[str, str]] | None = None,
) -> GraphDifferences:
    """Compare a graph with the one that it should be; constants bit for bit.

    Args:
        found: the graph in question, with its external data inside.
        expected: what it should be; clauses use its names.
        allow: tells of constants that are others whether they may be.
        anchors: of graphs that may be wired otherwise, tensors that stand for each other, found and expected: behind
            each the comparison begins anew. Identities are passed by then.
    """
    return _Comparison(found, expected, allow, anchors).run()


class _Side:
    """One of the two graphs."""

    def __init__(self, model: ModelProto, *, passes_identities: bool) -> None:
        self.model = model
        self.index = GraphIndex(model.graph)
        self._passes_identities = passes_identities
        self.inputs = {value.name: place for place, value in enumerate(model.graph.input)}

    def constant(self, name: str) -> bool:
        """Whether the file holds a tensor's value, and nobody can give it another."""
        return name in self.index.stored and name not in self.inputs

    def producer(self, name: str) -> NodeProto | None:
        return self.index.producers.get(name)

    def origin(self, name: str) -> str:
        """The tensor itself, or what Identities hand on as it; of a ring of them, any."""
        passed = set[str]()
        while self._passes_identities and (node := self.producer(name)) and node.op_type == "Identity":
            if name in passed:
                break
            passed.add(name)
            name = node.input[0]
        return name


class _Comparison:
    def __init__(
        self, found: ModelProto, expected: ModelProto, allow: Allow, anchors: Sequence[tuple[str, str]] | None
    ) -> None:
        sides = (_Side(model, passes_identities=anchors is not None) for model in (found, expected))
        self._found, self._expected = sides
        self._allow = allow
        self._anchors = [(self._found.origin(a), self._expected.origin(b)) for a, b in anchors or ()]
        self._result = GraphDifferences()

    def run(self) -> GraphDifferences:
        self._compare_edges()
        ends = (side.model.graph.output for side in (self._found, self._expected))
        waiting = [(a.name, b.name) for a, b in zip(*ends, strict=False)]
        self._result.names.update((b, a) for a, b in self._anchors)
        for pair in self._anchors:
            waiting += self._compare_computed(*pair)
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
        found, expected = self._found.origin(found), self._expected.origin(expected)
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
        yield from self._compare_computed(found, expected)

    def _compare_computed(self, found: str, expected: str) -> Iterator[tuple[str, str]]:
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
                is_number = None not in values and stated[1][name].type in _NUMBERS
                clauses = self._result.constants if is_number else self._result.wiring
                clauses.append(_clause(f"{name} of {where}", *(_value(each.get(name)) for each in stated)))
        counts = [len(_given(node)) for node in (a, b)]
        if counts[0] != counts[1]:
            self._other(where, *(f"{count} inputs" for count in counts))
        return counts[0] == counts[1]

    def _compare_constants(self, found: str, expected: str) -> None:
        if (found, expected) in self._result.pairs:
            return
        self._result.pairs.add((found, expected))
        a, b = self._found.index.stored_value(found), self._expected.index.stored_value(expected)
        if a is None or b is None:
            self._result.constants.append(f"{expected} cannot be read")
        elif (clause := difference(expected, a, b)) and not self._allow(expected, a, b):
            self._result.constants.append(clause)

    def _kind(self, side: _Side, name: str) -> str:
        node = side.producer(name)
        if not name or node is not None:
            return "nothing" if node is None else f"what {node.op_type} computes"
        return "an input" if name in side.inputs else "a constant" if side.constant(name) else "nothing"

    def _other(self, where: str, found: str, expected: str) -> None:
        self._result.wiring.append(_clause(where, found, expected))


def _clause(where: str, found: str, expected: str) -> str:
    return f"{where}: {found[:_EXCERPT]} instead of {expected[:_EXCERPT]}"


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


def is_rounding(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two constants are `ROUNDING` apart."""
    if a.dtype != b.dtype or a.shape != b.shape or a.dtype.kind != "f" or not a.size:
        return False
    return bool(np.abs(a.astype(np.float64) - b).max() <= ROUNDING * np.abs(b).max())


def difference(name: str, a: NDArray[Any], b: NDArray[Any]) -> str:
    """How `a` is not `b`: the first other value, with as many digits as tell the two apart; empty where it is."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{name} is {a.dtype} {list(a.shape)} instead of {b.dtype} {list(b.shape)}"
    raw = f"V{a.dtype.itemsize}"
    other = np.ascontiguousarray(a).reshape(-1).view(raw) != np.ascontiguousarray(b).reshape(-1).view(raw)
    if not other.any():
        return ""
    place = int(np.argmax(other))
    at = f"[{', '.join(str(int(each)) for each in np.unravel_index(place, a.shape))}]" if a.ndim else ""
    count = f" ({int(other.sum())} of {a.size} values differ)" if a.size > 1 else ""
    return f"{name}{at} is {a.reshape(-1)[place]!s} instead of {b.reshape(-1)[place]!s}{count}"
