"""What a rule is and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from odm_deploy.lowering.lint.graph import QdqGraph


class Severity(StrEnum):
    """What happens to a graph that breaks a rule, worst first."""

    ERROR = "error"
    """TensorRT refuses the graph, or its builder crashes."""
    SATURATES = "saturates"
    """It builds and computes something else, without a word."""
    SILENT_FLOAT = "silent-float"
    """It builds, and the layer runs in float, without a word."""
    WARNING = "warning"
    """Works here, but not on every builder or version, or costs accuracy."""
    INFO = "info"
    """Works, or costs next to nothing; could be better."""

    @property
    def fails_gate(self) -> bool:
        """Whether a graph with such a finding must not ship."""
        return self in (Severity.ERROR, Severity.SATURATES, Severity.SILENT_FLOAT)


@dataclass(frozen=True)
class Finding:
    """One place in a graph that breaks a rule."""

    rule: str
    """The rule's id, for example `scale-shape`."""
    severity: Severity
    node: str
    """Name of the ONNX node at fault (as TensorRT names it when it has none); empty for the graph as a whole."""
    message: str
    """What is wrong there and what it leads to, with the values."""
    fix: str
    """What to change."""
    layers: tuple[str, ...] = ()
    """Names of the convolutions and matrix products that suffer."""


# What a check yields: the node at fault, the message, and the layers that suffer.
Hit = tuple[str, str, tuple[str, ...]]
Check = Callable[["QdqGraph"], Iterator[Hit]]


@dataclass(frozen=True)
class Rule:
    """A trap of TensorRT's explicit quantization that can be seen in the ONNX graph."""

    id: str
    severity: Severity
    fix: str
    check: Check

    @property
    def trap(self) -> str:
        """What goes wrong and how that is known: the check's docstring."""
        return " ".join((self.check.__doc__ or "").split())

    def findings(self, graph: QdqGraph) -> Iterator[Finding]:
        """Apply the rule to a graph."""
        for node, message, layers in self.check(graph):
            yield Finding(self.id, self.severity, node, message, self.fix, layers)


RULES: dict[str, Rule] = {}
"""All rules by id, in the order they were registered."""


def rule(rule_id: str, severity: Severity, *, fix: str) -> Callable[[Check], Check]:
    """Register a check as a rule. Its docstring says what the trap is and how that is known."""

    def register(check: Check) -> Check:
        RULES[rule_id] = Rule(rule_id, severity, fix, check)
        return check

    return register
