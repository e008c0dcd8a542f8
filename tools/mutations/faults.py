"""The list of faults. A fault is a function that changes a copy of a graph, or of a manifest, and says where.

It raises NoSuchPlaceError where a graph has no such place. Faults know QDQ graphs in general, not one dialect of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mutations.graph import Graph

GraphFault = Callable[[Graph], str]
ManifestFault = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Fault:
    """One entry of the list."""

    name: str
    """What is wrong, in a few words."""
    change: GraphFault | None = None
    """Changes the graph in place and returns where."""
    describe: ManifestFault | None = None
    """Changes the manifest's document in place and returns where."""


FAULTS: dict[str, Fault] = {}
"""All faults by name, in the order of the list."""


def graph_fault(name: str) -> Callable[[GraphFault], GraphFault]:
    """Register a fault of the graph."""

    def register(change: GraphFault) -> GraphFault:
        FAULTS[name] = Fault(name, change=change)
        return change

    return register


def manifest_fault(name: str) -> Callable[[ManifestFault], ManifestFault]:
    """Register a fault of the manifest."""

    def register(describe: ManifestFault) -> ManifestFault:
        FAULTS[name] = Fault(name, describe=describe)
        return describe

    return register


def all_faults() -> dict[str, Fault]:
    """The whole list."""
    for module in ("faults_quantizers", "faults_weights", "faults_structure", "faults_edges"):
        importlib.import_module(f"mutations.{module}")
    return FAULTS
