"""What was tried, what failed, and what the worst of it cost; counts of several runs add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from torture.forked import Outcome


@dataclass
class Tally:
    """Counts of one part, by kind of file or verb."""

    tried: Counter[str] = field(default_factory=Counter[str])
    fresh: Counter[str] = field(default_factory=Counter[str])
    """How many of those were started anew rather than forked."""
    codes: Counter[str] = field(default_factory=Counter[str])
    """Exit codes, as text."""
    failed: list[str] = field(default_factory=list[str])
    slowest_s: dict[str, float] = field(default_factory=dict[str, float])
    largest_mib: dict[str, int] = field(default_factory=dict[str, int])

    def note(self, kind: str, outcome: Outcome, problem: str = "", *, counts: bool = True, fresh: bool = False) -> None:
        """One command more; `problem`, with what is needed to do it again, is what was wrong with it."""
        self.tried[kind] += counts
        self.fresh[kind] += counts and fresh
        if not outcome.killed:
            self.codes[str(outcome.code)] += 1
        self.slowest_s[kind] = max(self.slowest_s.get(kind, 0.0), round(outcome.seconds, 1))
        self.largest_mib[kind] = max(self.largest_mib.get(kind, 0), outcome.peak_bytes >> 20)
        if problem:
            self.failed.append(f"{kind}: {problem}")

    def plus(self, other: Tally) -> Tally:
        """The counts of both."""
        return Tally(
            self.tried + other.tried,
            self.fresh + other.fresh,
            self.codes + other.codes,
            self.failed + other.failed,
            _larger(self.slowest_s, other.slowest_s),
            _larger(self.largest_mib, other.largest_mib),
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        # asdict would make pairs of what counters hold.
        return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Self:
        """What `to_dict` gave."""
        counters = {name: Counter(kept[name]) for name in ("tried", "fresh", "codes")}
        return cls(**counters, failed=kept["failed"], slowest_s=kept["slowest_s"], largest_mib=kept["largest_mib"])

    def rows(self, part: str) -> list[tuple[object, ...]]:
        """A line a kind: part, kind, tried, of those fresh, failed, slowest in s, largest in MiB."""
        return [
            (
                *(part, kind, tried, self.fresh[kind], sum(line.startswith(f"{kind}: ") for line in self.failed)),
                *(f"{self.slowest_s[kind]:.1f}", self.largest_mib[kind]),
            )
            for kind, tried in sorted(self.tried.items())
        ]


def _larger(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in sorted({*one, *other})}
