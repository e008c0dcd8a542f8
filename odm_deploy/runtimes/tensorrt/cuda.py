"""The few CUDA runtime objects an engine needs: buffers, a stream, events, a captured graph.

Thin on purpose: cuda-python returns (status, value) tuples, and every status is checked here so that nothing above
this file can forget one. Nothing is imported before `Cuda.load`.
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odm_deploy.errors import MissingError, OdmError

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class Cuda:
    """The CUDA runtime API of device 0 through cuda-python, with checked calls."""

    def __init__(self, api: Any) -> None:
        self._api = api

    @classmethod
    def load(cls) -> Cuda:
        """Bind to cuda-python.

        Raises:
            MissingError: cuda-python is not installed, or CUDA finds no driver or device.
        """
        try:
            runtime: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise MissingError(
                "cuda-python is not installed",
                why="engines need it for GPU memory",
                fix="pip install 'cuda-python>=12.6'",
            ) from error
        status, count = runtime.cudaGetDeviceCount()
        if int(status) or not count:
            _, text = runtime.cudaGetErrorString(status)
            raise MissingError("CUDA finds no usable GPU", why=text.decode() if int(status) else "no device")
        return cls(runtime)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a CUDA runtime function by name and return its value (None where it has none).

        Raises:
            OdmError: CUDA answered with an error.
        """
        status, *values = getattr(self._api, function)(*arguments)
        if int(status) == _OUT_OF_MEMORY:
            raise OdmError("the GPU is out of memory", fix="use smaller images, a smaller --tile or --batch")
        if int(status):
            _, text = self._api.cudaGetErrorString(status)
            raise OdmError(f"{function} failed", why=text.decode(), fix="check the GPU with nvidia-smi")
        return values[0] if values else None

    def stream(self) -> Stream:
        """A new stream that does not synchronize with the default one."""
        return Stream(self, self.call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking))

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Queue a copy of `size` bytes; addresses tell the driver what lies on the host and what on the GPU."""
        self.call("cudaMemcpyAsync", target, source, size, self._api.cudaMemcpyKind.cudaMemcpyDefault, stream.handle)

    def borrowed_stream(self, handle: int) -> Stream:
        """A stream of somebody else, by its handle."""
        return Stream(self, self._api.cudaStream_t(handle))

    def event(self, *, timed: bool = False) -> Event:
        """An event to order streams by; `timed` ones measure time, too, and cost more."""
        flags = self._api.cudaEventDefault if timed else self._api.cudaEventDisableTiming
        return Event(self, self.call("cudaEventCreateWithFlags", flags))

    def allocate(self, size: int) -> int:
        """Address of `size` bytes of device memory."""
        # CUDA returns a null pointer for zero bytes, which TensorRT refuses as an address.
        return int(self.call("cudaMalloc", max(size, 1)))

    def free(self, address: int) -> None:
        """Free device memory; waits for the work that may still use it."""
        self.call("cudaFree", address)

    def capture(self, work: Callable[[], None], stream: Stream) -> Graph:
        """Record what `work` queues on `stream` into a graph that replays it with one launch.

        Raises:
            OdmError: `work` does something that cannot be captured.
        """
        # Thread-local: other threads of the caller's program may go on allocating meanwhile.
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream.handle, mode)
        try:
            work()
        except BaseException:
            # The stream must leave capture mode whatever happened, or it is lost for everything after.
            self._api.cudaStreamEndCapture(stream.handle)
            raise
        graph = self.call("cudaStreamEndCapture", stream.handle)
        try:
            return Graph(self, self.call("cudaGraphInstantiate", graph, 0))
        finally:
            self.call("cudaGraphDestroy", graph)


class Stream:
    """A CUDA stream."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self._cuda = cuda
        self.handle = handle

    def synchronize(self) -> None:
        """Wait for all that was queued."""
        self._cuda.call("cudaStreamSynchronize", self.handle)

    def record(self, event: Event) -> None:
        """Queue an event."""
        self._cuda.call("cudaEventRecord", event.handle, self.handle)

    def wait_for(self, event: Event) -> None:
        """Let what is queued from now on wait for the latest recording of `event`, without blocking the host."""
        self._cuda.call("cudaStreamWaitEvent", self.handle, event.handle, 0)

    def close(self) -> None:
        """Destroy the stream."""
        self._cuda.call("cudaStreamDestroy", self.handle)


class Event:
    """A point in a stream that other streams, or the host, can wait for. Destroyed when nobody refers to it."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self._cuda = cuda
        self.handle = handle
        weakref.finalize(self, cuda.call, "cudaEventDestroy", handle).atexit = False

    def synchronize(self) -> None:
        """Block until the latest recording has been reached."""
        self._cuda.call("cudaEventSynchronize", self.handle)

    def ms_until(self, end: Event) -> float:
        """Milliseconds from here to another event, both timed and reached."""
        return float(self._cuda.call("cudaEventElapsedTime", self.handle, end.handle))


class Buffer:
    """`size` bytes of device memory with a page-locked host twin.

    Copies from pageable memory would neither overlap nor be stable.
    """

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda = cuda
        self.size = size
        allocated = max(size, 1)
        self.device = cuda.allocate(size)
        try:
            self._host = int(cuda.call("cudaHostAlloc", allocated, 0))
        except OdmError:
            cuda.free(self.device)
            raise
        memory = (ctypes.c_uint8 * allocated).from_address(self._host)
        self.bytes: NDArray[np.uint8] = np.frombuffer(memoryview(memory), dtype=np.uint8)[:size]

    def upload(self, stream: Stream) -> None:
        """Queue host -> device."""
        self._cuda.copy(self.device, self._host, self.size, stream)

    def download(self, stream: Stream) -> None:
        """Queue device -> host."""
        self._cuda.copy(self._host, self.device, self.size, stream)

    def copy_from(self, address: int, stream: Stream) -> None:
        """Queue a copy of the whole device side from elsewhere in device memory."""
        self._cuda.copy(self.device, address, self.size, stream)

    def copy_to(self, address: int, stream: Stream) -> None:
        """Queue a copy of the whole device side to elsewhere in device memory."""
        self._cuda.copy(address, self.device, self.size, stream)

    def close(self) -> None:
        """Free both sides."""
        self._cuda.free(self.device)
        self._cuda.call("cudaFreeHost", self._host)


class Graph:
    """A captured CUDA graph, ready to launch."""

    def __init__(self, cuda: Cuda, executable: Any) -> None:
        self._cuda = cuda
        self._executable = executable

    def launch(self, stream: Stream) -> None:
        """Queue one replay."""
        self._cuda.call("cudaGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Destroy the graph."""
        self._cuda.call("cudaGraphExecDestroy", self._executable)
