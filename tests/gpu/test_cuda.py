"""The CUDA layer on a real GPU, without TensorRT: copies, events, capture, DLPack both ways, and an engine's streams.

The simulated GPU of the other tests runs nothing before somebody waits for it, but it runs one thing at a time and
knows no driver: whether two events really order two streams, whether a capture that fails leaves the stream usable, and
what torch makes of our memory, only a GPU can tell. What stands in for TensorRT here computes with torch, on the stream
it is given, behind a kernel that takes long enough for a missing wait to show.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from odm_deploy.errors import InputError, OdmError
from odm_deploy.machine.gpus import find_gpus
from odm_deploy.runtimes.dlpack import CUDA, BorrowedTensor
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensorrt.cuda import Buffer, Cuda, Stream
from odm_deploy.runtimes.tensorrt.device_tensors import DeviceArray
from odm_deploy.runtimes.tensorrt.engine import TensorRtEngine

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not find_gpus(), reason="no NVIDIA GPU that the driver can use"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no CUDA"),
]
CYCLES = 20_000_000  # about 10 ms
PIXELS = np.random.default_rng(1).random((1, 3, 8, 8), np.float32)
ENGINE_DTYPE = np.dtype(np.float32)


@pytest.fixture
def cuda() -> Cuda:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    return Cuda.load()


@pytest.fixture
def stream(cuda: Cuda) -> Iterator[Stream]:
    with closing(cuda.stream()) as made:
        yield made


class Memory:
    """Memory at an address, as torch takes it."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {"data": (address, False), "shape": shape, "typestr": "<f4", "version": 3}


class Context:
    """Stands in for an execution context: adds 1 to every value, a while after it was asked to."""

    profiler = None

    def __init__(self, streams: set[int]) -> None:
        self._streams = streams
        self._shape: tuple[int, ...] = ()
        self._at: dict[str, int] = {}
        self._tensors: list[Any] = []

    def set_optimization_profile_async(self, _profile: int, _stream: int) -> bool:
        return True

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> bool:
        self._shape = tuple(shape)
        return True

    def get_tensor_shape(self, _: str) -> tuple[int, ...]:
        return self._shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._at[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self._streams.add(stream)
        if not self._tensors:
            memories = (Memory(self._at[name], self._shape) for name in ("image", "sr"))
            self._tensors = [torch.as_tensor(memory, device="cuda") for memory in memories]
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            torch.cuda._sleep(CYCLES)
            torch.add(self._tensors[0], 1, out=self._tensors[1])
        return True


class PlusOne:
    """Stands in for `trt.ICudaEngine`."""

    num_io_tensors, num_optimization_profiles, device_memory_size_v2 = 2, 1, 0

    def __init__(self) -> None:
        self.streams: set[int] = set()

    def get_tensor_name(self, index: int) -> str:
        return ("image", "sr")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "image" else "output"

    def get_tensor_shape(self, _: str) -> tuple[int, ...]:
        return (-1, 3, -1, -1)

    def get_tensor_dtype(self, _: str) -> type:
        return np.float32

    def get_tensor_profile_shape(self, _name: str, _profile: int) -> tuple[tuple[int, ...], ...]:
        return (1, 3, 2, 2), (1, 3, 8, 8), (2, 3, 64, 64)

    def create_execution_context(self) -> Context:
        return Context(self.streams)


TENSORRT = SimpleNamespace(
    TensorIOMode=SimpleNamespace(INPUT="input"), nptype=lambda kind: kind, __version__="10.13.0.35"
)


@pytest.fixture(params=[True, False], ids=["graph", "no-graph"])
def engine(cuda: Cuda, request: pytest.FixtureRequest) -> Iterator[TensorRtEngine]:
    options = RuntimeOptions(cuda_graph=request.param)
    with TensorRtEngine(TENSORRT, PlusOne(), cuda, SimpleNamespace(last_error=""), options, "stand-in") as opened:
        yield opened
        # A capture that failed would have been survived, and tested nothing.
        assert opened.describe()["cuda_graph"] is request.param


def test_bytes_come_back_as_they_went_and_copies_take_time(cuda: Cuda, stream: Stream) -> None:
    with closing(Buffer(cuda, 1 << 24)) as first, closing(Buffer(cuda, 1 << 24)) as second:
        first.bytes[:] = np.random.default_rng(0).integers(0, 256, first.size, np.uint8)
        start, end = cuda.event(timed=True), cuda.event(timed=True)
        stream.record(start)
        first.upload(stream)
        second.copy_from(first.device, stream)
        second.download(stream)
        stream.record(end)
        stream.synchronize()
        np.testing.assert_array_equal(first.bytes, second.bytes)
        assert 0 < start.ms_until(end) < 1000


def test_a_graph_replays_and_a_refused_capture_costs_nothing_else(cuda: Cuda, stream: Stream) -> None:
    """A simulated stream cannot be lost in capture mode."""
    with closing(Buffer(cuda, 1 << 16)) as first, closing(Buffer(cuda, 1 << 16)) as second:
        graph = cuda.capture(lambda: second.copy_from(first.device, stream), stream)
        first.bytes[:] = 7
        first.upload(stream)
        graph.launch(stream)
        second.download(stream)
        stream.synchronize()
        assert (second.bytes == 7).all()
        graph.close()
        with pytest.raises(OdmError):
            cuda.capture(stream.synchronize, stream)
        first.bytes[:] = 9
        first.upload(stream)
        second.copy_from(first.device, stream)
        second.download(stream)
        stream.synchronize()
        assert (second.bytes == 9).all()


def test_too_much_memory_is_one_line_and_forgotten(cuda: Cuda, stream: Stream) -> None:
    """CUDA keeps an error until somebody asks for it: torch, in the same process, must not find ours."""
    with pytest.raises(OdmError, match="out of memory"):
        cuda.allocate(1 << 50)
    assert torch.ones(4, device="cuda").sum().item() == 4
    cuda.free(cuda.allocate(0))
    stream.synchronize()


def test_torch_tensors_are_looked_into_for_a_stream(stream: Stream) -> None:
    tensor = torch.arange(210, device="cuda", dtype=torch.float32).reshape(2, 3, 5, 7)
    for handle in (1, int(stream.handle), torch.cuda.Stream().cuda_stream):
        borrowed = BorrowedTensor(tensor, stream=handle)
        assert (borrowed.pointer, borrowed.shape) == (tensor.data_ptr(), (2, 3, 5, 7))
        assert borrowed.device == (CUDA, 0)
    # torch refuses the default stream of each thread.
    with pytest.raises(InputError, match="cannot be read"):
        BorrowedTensor(tensor, stream=2)


def test_torch_waits_for_our_arrays_and_keeps_their_memory(cuda: Cuda, stream: Stream) -> None:
    source = torch.arange(1 << 20, device="cuda", dtype=torch.float32)
    torch.cuda.synchronize()
    for where in (torch.cuda.default_stream(), torch.cuda.Stream()):
        freed: list[int] = []
        ready, pointer = cuda.event(), cuda.allocate(source.nbytes)
        with torch.cuda.stream(torch.cuda.ExternalStream(int(stream.handle))):
            torch.cuda._sleep(CYCLES)
        cuda.copy(pointer, source.data_ptr(), source.nbytes, stream)
        stream.record(ready)

        def let_wait(handle: int, ready: Any = ready) -> None:
            cuda.borrowed_stream(handle).wait_for(ready)

        array = DeviceArray(pointer, tuple(source.shape), ENGINE_DTYPE, (CUDA, 0), freed.append, let_wait)
        with torch.cuda.stream(where):
            seen = torch.from_dlpack(array)
            assert torch.equal(seen, source)
        del array
        gc.collect()
        assert not freed
        del seen
        gc.collect()
        assert freed == [pointer]
        cuda.free(pointer)


def test_an_engine_computes_from_host_memory(engine: TensorRtEngine) -> None:
    for _ in range(3):
        np.testing.assert_array_equal(engine.upscale(PIXELS), PIXELS + 1)
    times = engine.timed_run({"image": PIXELS})
    assert times.compute_ms is not None
    assert times.compute_ms > 1
    assert engine.back_to_back_ms({"image": PIXELS}, 5) > 1


@pytest.mark.parametrize("side", [False, True], ids=["default-stream", "side-stream"])
def test_two_events_order_a_callers_stream_and_the_engines_own(engine: TensorRtEngine, side: bool) -> None:
    """Nothing here waits on the host: inputs are written, read and written again while others compute."""
    where = torch.cuda.Stream() if side else torch.cuda.default_stream()
    with torch.cuda.stream(where):
        handle = torch.cuda.current_stream().cuda_stream
        source, target = torch.zeros(2, 1, 3, 8, 8, device="cuda").unbind()
        engine.run_on_device({"image": source}, stream=handle)
        seen: list[Any] = []
        for value in range(5):
            torch.cuda._sleep(CYCLES)
            source.fill_(value)
            (made,) = engine.run_on_device({"image": source}, stream=handle).values()
            seen.append(torch.from_dlpack(made) * 2)
            engine.run_on_device({"image": source}, out={"sr": target}, stream=handle)
            seen.append(target * 2)
    where.synchronize()
    assert [each.unique().tolist() for each in seen] == [[2.0 * (index // 2 + 1)] for index in range(10)]
    stand_in: Any = engine._engine
    assert stand_in.streams == {int(engine._stream.handle)}


def test_without_a_stream_results_are_there_on_return(engine: TensorRtEngine) -> None:
    for value in range(3):
        torch.cuda._sleep(CYCLES)
        source = torch.full((1, 3, 8, 8), float(value), device="cuda")
        (made,) = engine.run_on_device({"image": source}).values()
        assert torch.from_dlpack(made).unique().tolist() == [value + 1.0]


def test_callers_on_two_streams_share_an_engine(engine: TensorRtEngine) -> None:
    streams, seen = [torch.cuda.Stream(), torch.cuda.Stream()], list[Any]()
    for value in range(6):
        with torch.cuda.stream(streams[value % 2]):
            source = torch.full((1, 3, 8, 8), float(value), device="cuda")
            (made,) = engine.run_on_device({"image": source}, stream=streams[value % 2].cuda_stream).values()
            seen.append(torch.from_dlpack(made) + 0)
    torch.cuda.synchronize()
    assert [each.unique().tolist() for each in seen] == [[value + 1.0] for value in range(6)]


def test_the_host_queues_runs_on_the_default_stream_without_waiting(engine: TensorRtEngine) -> None:
    source = torch.zeros(1, 3, 8, 8, device="cuda")
    target = torch.zeros_like(source)
    engine.run_on_device({"image": source}, out={"sr": target}, stream=0)
    torch.cuda.synchronize()
    for _ in range(10):
        engine.run_on_device({"image": source}, out={"sr": target}, stream=0)
    done = torch.cuda.Event()
    done.record(torch.cuda.default_stream())
    # Ten runs of 10 ms each lie ahead of it.
    assert not done.query()
    done.synchronize()
    assert target.unique().tolist() == [1.0]
