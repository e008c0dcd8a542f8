"""Running a model many times where only one layer differs from run to run.

Whatever runs before that layer computes what it computed before. So the outputs of all layers of the last run that was
kept are held, and layers in front of the changed one hand theirs out instead of computing it.

Networks may write into tensors that they are given. Into which ones they write is seen in the first run on an image,
and of those it is copies that are held and handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from odm_deploy.quantization.layers import QuantizedLayer
from odm_deploy.quantization.model import QuantizedModel, computed_by

KEPT_MIB = 512
"""What the held outputs may take. Those of the first layers are held, which are handed out most often."""


class Replay:
    """Runs of a model on images that are told by their number.

    Attributes:
        order: the quantized layers, in the order in which they first ran.
    """

    def __init__(self, model: QuantizedModel) -> None:
        self._model = model
        self.order: list[QuantizedLayer] = []
        self._starts: dict[QuantizedLayer, int] = {}
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._new: dict[tuple[int, int], Tensor] = {}
        self._free_bytes = KEPT_MIB * 2**20
        # Calls into whose outputs the network writes; of a first run outputs, and how often they were written into.
        self._written: set[int] = set()
        self._watched: list[tuple[int, Tensor, int]] | None = None
        # Of the run that is going on: its image, how many calls of layers it has made, and the first one to compute.
        self._image = self._calls = self._first = 0

    def first(self, number: int, image: Tensor) -> Tensor:
        """Run for the first time on an image, [N, 3, H, W]; its outputs are kept."""
        self._watched = watched = []
        output = self._run(number, image, 0)
        self._watched = None
        self._written |= {call for call, given, version in watched if given._version != version}
        self._kept |= self._new
        return output

    def again(self, number: int, image: Tensor, changed: QuantizedLayer) -> Tensor:
        """Run on the image again, where at most `changed` differs from what was last kept."""
        return self._run(number, image, self._starts[changed])

    def keep(self) -> None:
        """Take the runs since `begin`, of every image, for what later ones are compared with."""
        self._kept |= self._new

    def begin(self) -> None:
        """Forget the runs since the last that were kept."""
        self._new = {}

    def _run(self, number: int, image: Tensor, first: int) -> Tensor:
        self._image, self._calls, self._first = number, 0, first
        return self._model(image)

    def forward(self, layer: QuantizedLayer, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What `layer` makes of `x`, computed or handed out."""
        call = self._calls
        self._calls += 1
        if layer not in self._starts:
            self._starts[layer] = call
            self.order.append(layer)
        held = self._kept.get((self._image, call))
        if held is not None and call < self._first:
            return held.clone() if call in self._written else held
        output = compute(x)
        if held is None and output.nbytes <= self._free_bytes:
            self._free_bytes -= output.nbytes
            held = output
        if held is not None:
            copied = self._watched is not None or call in self._written
            self._new[self._image, call] = output.clone() if copied else output
        if self._watched is not None:
            self._watched.append((call, output, output._version))
        return output


@contextmanager
def replaying(model: QuantizedModel) -> Generator[Replay]:
    """While this lasts, runs of `model` go through what is yielded."""
    replay = Replay(model)
    with computed_by(model.layers.values(), replay.forward), torch.no_grad():
        yield replay
