"""What fixing a graph did, and what it could not do."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Tap:
    """Where the codes of one quantizer are, before and after."""

    before: str
    """Tensor of codes in the original graph."""
    after: str
    """Tensor of codes in the fixed one."""
    offset: int
    """What to subtract from the first to get the second."""
    pads: tuple[int, ...] = ()
    """Padding in ONNX's order that only the second has; empty for none."""
    zero: int = 0
    """The second's code of real zero, with which it is padded."""


@dataclass(frozen=True)
class Moved:
    """A quantizer that moved behind an operation: the codes it makes there, in terms of the original graph."""

    values: str
    """What the operation makes of dequantized codes there; each of them is a code's."""
    step: float
    zero: int


@dataclass
class Changes:
    """A record that the passes write as they go."""

    done: dict[str, int] = field(default_factory=dict[str, int])
    """What was rewritten, and how many times."""
    left: list[str] = field(default_factory=list[str])
    """What stays as it was or runs in float, each with the reason."""
    taps: list[Tap] = field(default_factory=list[Tap])
    moved: dict[str, Moved] = field(default_factory=dict[str, Moved])
    """By the tensor of codes that is new with it."""

    def did(self, what: str, count: int = 1) -> None:
        """Note a change, unless `count` is 0."""
        if count:
            self.done[what] = self.done.get(what, 0) + count

    def leave(self, what: str) -> None:
        """Note what could not be kept exact, once."""
        if what not in self.left:
            self.left.append(what)
