"""One input shape of an engine, ready to run: an execution context, the buffers it reads and writes, a CUDA graph.

NVIDIA's guide asks for a context of its own behind every captured graph: a graph replays the addresses and the shapes
its context had at capture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from odm_deploy.errors import InputError, OdmError
from odm_deploy.runtimes.dlpack import BorrowedTensor
from odm_deploy.runtimes.tensor_info import Array, TensorInfo
from odm_deploy.runtimes.tensorrt.cuda import Buffer, Cuda, Graph, Stream


class ShapeBinding:
    """An engine bound to one set of input shapes."""

    def __init__(
        self,
        cuda: Cuda,
        stream: Stream,
        context: Any,
        profile: int,
        feeds: Mapping[str, Array | BorrowedTensor],
        outputs: Sequence[TensorInfo],
        *,
        capture: bool,
    ) -> None:
        """Bind `context` to the shapes of `feeds`, allocate, warm up, and capture a graph if asked to.

        All work goes to `stream`, and only there: TensorRT synchronizes on the default stream, and TensorRT for RTX
        replays no graph on it.

        Raises:
            OdmError: the GPU has too little memory, or TensorRT fails.
            InputError: an output's shape depends on the data.
        """
        self._stream = stream
        self._context: Any = context
        self._inputs: dict[str, tuple[Buffer, Array]] = {}
        self._outputs: dict[str, tuple[Buffer, Array]] = {}
        self._graph: Graph | None = None
        self.capture_failure = ""
        """Why runs go kernel by kernel although a graph was asked for; empty where they do not."""
        try:
            _require(context.set_optimization_profile_async(profile, int(stream.handle)), f"profile {profile}")
            for name, array in feeds.items():
                self._inputs[name] = _allocate(cuda, array.shape, array.dtype)
                _require(context.set_input_shape(name, array.shape), f"shape {array.shape} of its input {name!r}")
            for info in outputs:
                shape = tuple(int(size) for size in context.get_tensor_shape(info.name))
                if min(shape, default=0) < 0:
                    what = f"cannot run this engine: the shape of its output {info.name!r} depends on the data"
                    raise InputError(what)
                self._outputs[info.name] = _allocate(cuda, shape, info.dtype)
            for name, (buffer, _) in (self._inputs | self._outputs).items():
                _require(context.set_tensor_address(name, buffer.device), f"memory for {name!r}")
            # The first run after a change of shape does work on the host that a graph must not contain.
            self._enqueue()
            stream.synchronize()
            if capture:
                try:
                    self._graph = cuda.capture(self._enqueue, stream)
                except OdmError as error:
                    # An engine with work that cannot be captured still runs, kernel by kernel.
                    self.capture_failure = str(error)
        except BaseException:
            self.close()
            raise

    def fill(self, feeds: Mapping[str, Array]) -> None:
        """Copy feeds into page-locked memory."""
        for name, (_, host) in self._inputs.items():
            host[...] = feeds[name]

    def upload(self) -> None:
        """Queue all inputs, host to device."""
        for buffer, _ in self._inputs.values():
            buffer.upload(self._stream)

    def compute(self) -> None:
        """Queue one run of the network."""
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue()

    def run_between(self, feeds: Mapping[str, int], results: Mapping[str, int]) -> None:
        """Queue a whole run from and to device memory given by its addresses.

        The network keeps computing in buffers of its own, because a captured graph replays the addresses of its
        capture; copies within device memory cost a fraction of a percent of a super-resolution network.
        """
        for name, address in feeds.items():
            self._inputs[name][0].copy_from(address, self._stream)
        self.compute()
        for name, address in results.items():
            self._outputs[name][0].copy_to(address, self._stream)

    def time_layers(self, timer: Any, runs: int) -> None:
        """Run some times with TensorRT reporting the time of each layer to `timer`, a `trt.IProfiler`."""
        self._context.profiler = timer
        for _ in range(runs):
            self._enqueue()
        self._stream.synchronize()

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every output for the bound input shapes."""
        return {name: host.shape for name, (_, host) in self._outputs.items()}

    def download(self) -> None:
        """Queue all outputs, device to host."""
        for buffer, _ in self._outputs.values():
            buffer.download(self._stream)

    def results(self) -> dict[str, Array]:
        """Copies of the downloaded outputs. Valid after the stream was synchronized."""
        return {name: host.copy() for name, (_, host) in self._outputs.items()}

    def close(self) -> None:
        """Free the graph, the buffers and the context, once nothing uses them any more."""
        self._stream.synchronize()
        if self._graph is not None:
            self._graph.close()
        for buffer, _ in (self._inputs | self._outputs).values():
            buffer.close()
        self._graph, self._context = None, None
        self._inputs, self._outputs = {}, {}

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise OdmError("TensorRT could not run the engine", fix="check the GPU with nvidia-smi")


def _require(accepted: bool, what: str) -> None:
    if not accepted:
        raise OdmError(f"TensorRT does not take {what}", why="it gave no reason", fix="build the engine again")


def _allocate(cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Buffer, Array]:
    buffer = Buffer(cuda, math.prod(shape) * dtype.itemsize)
    return buffer, buffer.bytes.view(dtype).reshape(shape)
