"""How often images reach what runtimes may do differently: rounding ties and saturated codes, quantizer by quantizer.

Agreement on images that meet no tie says nothing about ties. This counts them while the interpreter runs, so that a
comparison can say what it was a comparison of.
"""

from __future__ import annotations

from dataclasses import dataclass

from odm_deploy.progress import counted
from odm_deploy.quantization.exact.program import Integers, Program, Quantize, Step


@dataclass
class Reached:
    """What one quantizer met, in values."""

    ties: int = 0
    """Exactly between two codes, both of which the grid has."""
    lowest: int = 0
    """Ended as the smallest code."""
    highest: int = 0
    """Ended as the largest code."""
    rounds: bool = False
    """Whether its input has finer digits than its codes; without, there are no ties to meet."""


class RoundingCensus:
    """Counts over all images interpreted; `watch` is what `interpret` takes.

    Args:
        program: what is interpreted. Its image is 8-bit codes already, so quantizers that read it are left out.
    """

    def __init__(self, program: Program) -> None:
        self._quantizers = [
            step for step in program.steps if isinstance(step, Quantize) and step.sources[0] != program.input
        ]
        self._last_reader = {step.sources[0]: step.name for step in self._quantizers}
        self._sources: dict[str, tuple[Integers, int]] = {}
        self.layers = {step.layer: Reached() for step in self._quantizers}
        """By the name of the layer whose input is quantized."""

    def watch(self, step: Step, result: Integers, exponent: int) -> None:
        """See one step's result."""
        if step.name in self._last_reader:
            self._sources[step.name] = result, exponent
        if not isinstance(step, Quantize) or step.sources[0] not in self._sources:
            return
        source = step.sources[0]
        n, finer = self._sources[source]
        if self._last_reader[source] == step.name:
            del self._sources[source]
        reached = self.layers[step.layer]
        at_lowest, at_highest = result == step.lowest, result == step.highest
        reached.lowest += int(at_lowest.sum())
        reached.highest += int(at_highest.sum())
        dropped = step.exponent - finer
        if dropped > 0:
            reached.rounds = True
            halfway = (n & ((1 << dropped) - 1)) == 1 << (dropped - 1)
            code = n >> dropped
            reached.ties += int((halfway & (code >= step.lowest) & (code < step.highest)).sum())

    def summary(self) -> str:
        """One line: how many in all, and how many the quantizer with the fewest met."""
        ties = [reached.ties for reached in self.layers.values() if reached.rounds]
        ends = [reached.lowest + reached.highest for reached in self.layers.values()]
        return (
            f"{counted(sum(ties), 'rounding tie')}, at least {min(ties, default=0)} in each of "
            f"{counted(len(ties), 'quantizer')}; "
            f"{counted(sum(ends), 'code')} at a grid's end, at least {min(ends, default=0)} in each"
        )
