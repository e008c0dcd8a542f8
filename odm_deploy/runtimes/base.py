"""What every runtime can do: open a model, run arrays through it, say what it is, close.

A runtime never imports its package before `open`: a machine that lacks it hears so in one line, with the pip command.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from odm_deploy.bundle import Bundle, ModelKind
from odm_deploy.closable import Closable
from odm_deploy.errors import InputError, UsageError
from odm_deploy.runtimes.dlpack import Tensors, host_array
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensor_info import Array, TensorInfo


@dataclass(frozen=True)
class RunTimes:
    """Durations of one run. `latency_ms` is what a caller waits, from arrays in host memory to arrays in host memory.

    The three parts are known on a GPU only, measured with CUDA events between them; there `latency_ms` is their sum,
    which is trtexec's definition of latency.
    """

    latency_ms: float
    h2d_ms: float | None = None
    compute_ms: float | None = None
    d2h_ms: float | None = None


class Runtime(Closable):
    """A model loaded into one runtime. A context manager; safe to share between threads, whose runs take turns."""

    name: ClassVar[str]
    """The name users pass to `--runtime`."""
    model_kind: ClassVar[ModelKind]
    """Which kind of file of a bundle this runtime loads."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    version: str
    """Version of the runtime's package."""
    device: str
    """What it runs on, for humans, such as "AMD EPYC 9354, 2 threads"."""
    rounding_note: ClassVar[str] = ""
    """What about this runtime's arithmetic explains rare flips of codes; shown by `verify`."""
    rounding_steps: ClassVar[float] = 0.0
    """How far from a rounding tie its quantizers are known to choose the other code, in steps; 0: nothing is known."""
    on_gpu: ClassVar[bool] = False
    """Whether it computes on an NVIDIA GPU."""
    speed_note: str = ""
    """What about this runtime keeps int8 from being fast, whatever the graph; shown by `bench`."""
    passed_over: tuple[str, ...] = ()
    """Why runtimes that come first in the order of preference were not taken, where somebody might expect them."""

    def __init__(self) -> None:
        # Execution contexts and infer requests hold per-run state, so one lock guards every run and the closing.
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, model: Bundle | Path | str, options: RuntimeOptions | None = None) -> Self:
        """Load a bundle, or the model file this runtime takes (model.onnx or engine.plan).

        Raises:
            InputError: the file is missing, is not such a model, or the runtime refuses it.
            MissingError: the runtime's package or its device is not on this machine.
            UsageError: the runtime cannot honour one of the options.
        """
        bundle = Bundle.open(model)
        opened = cls._open_bundle(bundle, options or RuntimeOptions())
        opened.inputs, opened.outputs = (
            tuple(dataclasses.replace(edge, stated=bundle.image_format) for edge in edges)
            for edges in (opened.inputs, opened.outputs)
        )
        return opened

    @classmethod
    def open_bytes(cls, model: bytes, options: RuntimeOptions | None = None, *, label: str = "the model") -> Self:
        """Load a model from its serialized bytes. `label` names it in error messages. Raises as `open`."""
        return cls._load_bytes(model, options or RuntimeOptions(), label)

    @classmethod
    @abstractmethod
    def _load_bytes(cls, model: bytes, options: RuntimeOptions, label: str) -> Self: ...

    @classmethod
    @abstractmethod
    def _open_bundle(cls, bundle: Bundle, options: RuntimeOptions) -> Self:
        """Load this runtime's file of a bundle. Raises as `open`."""

    @abstractmethod
    def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run checked, C-contiguous feeds. The arrays returned must not be overwritten by a later run."""

    def describe(self) -> dict[str, Any]:
        """Plain values for a report: runtime, version, device, and the settings that influence results and speed."""
        return {"runtime": self.name, "version": self.version, "device": self.device}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once.

        Args:
            feeds: an array for every input, by name, with the dtype and shape of `inputs`: numpy, or whatever
                exports DLPack from host memory.

        Returns:
            An array for every output, by name. They belong to the caller.

        Raises:
            InputError: a feed is missing, unknown, or does not fit.
            UsageError: the runtime is closed.
        """
        checked = self._check(feeds)
        with self._lock:
            self._require_open()
            return self._execute(checked)

    def timed_run(self, feeds: Mapping[str, Array]) -> RunTimes:
        """Run once for its duration. The feeds are checked before the clock starts. Raises as `run`."""
        checked = self._check(feeds)
        with self._lock:
            self._require_open()
            return self._execute_timed(checked)

    def upscale(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """`run_rgb` with a copy of the result: float32 [N, 3, H*scale, W*scale], whatever the model's type."""
        return np.ascontiguousarray(self.run_rgb(images), np.float32)

    def run_rgb(self, images: Array) -> Array:
        """Run a model that has one image input and one image output, whatever its edge types, layout and order.

        Args:
            images: [N, 3, H, W], RGB in 0..255, any dtype; rounded where the model takes uint8.

        Returns:
            A view of what comes out as [N, 3, H*scale, W*scale], RGB in 0..255, of the model's type; floats are not
            clamped.

        Raises:
            InputError: the model has several inputs or outputs, or takes no RGB images of this shape.
            UsageError: the runtime is closed.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError("cannot upscale these images", why=f"their shape is {images.shape}, not [N, 3, H, W]")
        source, sink = self.single_image_edges()
        return sink.images.as_rgb(self.run({source.name: source.images.from_rgb(images)})[sink.name])

    def single_image_edges(self) -> tuple[TensorInfo, TensorInfo]:
        """The one input and the one output of a model that upscales images.

        Raises:
            InputError: the model has several inputs or outputs.
        """
        if len(self.inputs) != 1 or len(self.outputs) != 1:
            raise InputError(
                f"cannot upscale with this model on {self.name}",
                why=f"it has {len(self.inputs)} inputs and {len(self.outputs)} outputs instead of one each",
            )
        return self.inputs[0], self.outputs[0]

    def run_on_device(self, feeds: Tensors, out: Tensors | None = None, stream: int | None = None) -> Tensors:
        """Run the model on tensors in GPU memory, without a detour through the host. Engines only.

        Args:
            feeds: a contiguous tensor for every input, exporting DLPack: of torch, cupy, jax or an earlier run.
            out: contiguous tensors to write the outputs to, exporting DLPack; None allocates new ones.
            stream: handle of a CUDA stream (torch: `stream.cuda_stream`; 0 is the default one). The run takes its
                place in the order of that stream, and the call returns before it is done. None returns when the
                results are there.

        Returns:
            For every output the tensor of `out`, or a new `DeviceArray`: `torch.from_dlpack(array)`.

        Raises:
            InputError: this runtime computes in host memory; or a tensor is missing, unknown, on another device, not
                contiguous, or does not fit.
            UsageError: the runtime is closed.
        """
        raise InputError(
            f"{self.name} cannot run on tensors in GPU memory",
            why="it computes in host memory",
            fix="pass arrays in host memory to `run`, or open an engine.plan",
        )

    def another(self) -> Self:
        """A second runtime on the same loaded model, whose runs overlap with those of this one.

        Close each of them.

        Raises:
            UsageError: the runtime is closed.
        """
        with self._lock:
            self._require_open()
            other = copy.copy(self)
            other._lock = threading.Lock()
            other._renew_run_state()
        return other

    def _renew_run_state(self) -> None:
        """In a copy, replace what one run would disturb in another."""

    def typical_shape(self) -> tuple[int, ...]:
        """A shape the first input takes and is worth timing: fixed dimensions as they are, else one 180x320 image."""
        info = self.inputs[0]
        image = (1, 180, 320, 3) if info.images.layout == "nhwc" else (1, 3, 180, 320)
        return tuple(usual if size is None else size for usual, size in zip(image, info.shape, strict=False))

    def close(self) -> None:
        """Free the model and its device memory. A closed runtime cannot run; closing twice is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._release()

    def _execute_timed(self, feeds: Mapping[str, Array]) -> RunTimes:
        start = time.perf_counter()
        self._execute(feeds)
        return RunTimes(latency_ms=(time.perf_counter() - start) * 1e3)

    @abstractmethod
    def _release(self) -> None:
        """Drop what the model holds. Called once, with the lock held."""

    def _check(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        wanted = {info.name for info in self.inputs}
        if set(feeds) != wanted:
            raise InputError(
                f"these are not the inputs of the model on {self.name}",
                why=f"given {sorted(feeds)}, the model takes {sorted(wanted)}",
            )
        checked: dict[str, Array] = {}
        for info in self.inputs:
            array = host_array(feeds[info.name], f"input {info.name!r}")
            info.check(array)
            checked[info.name] = np.ascontiguousarray(array)
        return checked

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError(f"this {self.name} model cannot run", why="it was closed")
