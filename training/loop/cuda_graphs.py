"""A training step's forward and backward passes as CUDA graphs.

A step is some thousand kernels, most of them so short that a processor takes longer to launch them than a GPU to run
them. A graph is launched as one. Outside of it stay what looks at values, and the optimizer, which has few kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from training.loop.step import GradientStep
from training.methods.base import Gradients

_T = TypeVar("_T")

# In their first steps cuDNN chooses its algorithms and quantizers are compiled, neither of which can be captured.
_WARM_UP_STEPS = 3


def capture(work: Callable[[], _T]) -> tuple[Callable[[], None], _T]:
    """Record the kernels of `work` (torch's documentation, "CUDA graphs").

    Returns:
        A function that runs them again, and the result of `work`, whose tensors hold what the latest run computed.
    """
    current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    aside.wait_stream(current)
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP_STEPS):
            work()
    current.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Another thread pins the next batches meanwhile, which the default forbids to all threads.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()
    return graph.replay, result


@dataclass(frozen=True)
class _Graph:
    low: Tensor
    high: Tensor
    replay: Callable[[], None]
    gradients: Gradients


class GraphedStep:
    """A `GradientStep` that is recorded once and replayed after that.

    There is one graph for each kind of step a method has (`Method.operations`) and shape of a batch. The gradients it
    returns are overwritten by the next step of that kind. The parameters of `step` may change in place only.
    """

    def __init__(
        self,
        step: GradientStep,
        capture: Callable[[Callable[[], Gradients]], tuple[Callable[[], None], Gradients]] = capture,
    ) -> None:
        self._step = step
        self._capture = capture
        self._graphs: dict[Hashable, _Graph] = {}

    def __call__(self, low: Tensor, high: Tensor, iteration: int) -> Gradients:
        """Losses and gradients; see `GradientStep`."""
        step = self._step
        step.method.begin_iteration(step.model, iteration)
        kind = (step.method.operations(iteration), low.shape)
        if kind not in self._graphs:
            self._graphs[kind] = self._record(low, high, iteration)
        graph = self._graphs[kind]
        graph.low.copy_(low)
        graph.high.copy_(high)
        graph.replay()
        return graph.gradients

    def _record(self, low: Tensor, high: Tensor, iteration: int) -> _Graph:
        low, high = low.clone(), high.clone()
        # Warming up must not count as training: some layers keep running statistics.
        buffers = list(self._step.model.network.buffers())
        before = [buffer.clone() for buffer in buffers]
        replay, gradients = self._capture(lambda: self._step.passes(low, high, iteration))
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        return _Graph(low, high, replay, gradients)
