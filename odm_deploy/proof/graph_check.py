"""What came of comparing a graph with the one that its model.pt lowers to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class GraphCheck:
    """How a graph compares with what its model.pt lowers to."""

    file: str
    """Name of the graph's file."""
    compared: int = 0
    """Constants compared."""
    constants: list[str] = field(default_factory=list[str])
    """Those that are others, one clause each, with both values."""
    wiring: list[str] = field(default_factory=list[str])
    """Where the graph is another one otherwise, one clause each."""
    written_by: str | None = None
    """Who wrote the file, where that was somebody else than whoever runs here, or is not known."""

    @property
    def identical(self) -> bool:
        """Whether no difference was found."""
        return not self.constants and not self.wiring

    @property
    def failures(self) -> list[str]:
        """Why the verdict is no, one clause; empty where it is not."""
        found = self.constants + (self.wiring if self.written_by is None else [])
        return [f"{self.file} is not what model.pt lowers to: {_first(found)}"] if found else []

    @property
    def remark(self) -> str:
        """What people should know where the comparison has no verdict; empty where it has one."""
        if self.identical or self.failures:
            return ""
        return (
            f"{self.file} was written by {self.written_by}, and model.pt is wired otherwise here "
            f"({_first(self.wiring)}): its constants are compared, its wiring only by what it computes; "
            "odm-deploy export writes it anew"
        )

    def to_dict(self) -> dict[str, Any]:
        """An entry of `graphs` in `verify --json`."""
        return {
            "file": self.file,
            "identical": self.identical,
            "constants_compared": self.compared,
            "constants": self.constants,
            "wiring": self.wiring,
            "written_by": self.written_by,
        }


def _first(clauses: list[str]) -> str:
    """The first clause, and how many more there are."""
    return clauses[0] + (f", and {len(clauses) - 1} more" if len(clauses) > 1 else "")
