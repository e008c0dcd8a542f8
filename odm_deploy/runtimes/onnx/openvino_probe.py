"""Whether OpenVINO survives compiling a graph, tried in another process.

That process imports OpenVINO once and is kept for the next graphs, until none comes for `_IDLE_S` or this process ends.
One that crashed is told and replaced. So that an earlier graph cannot be the cause, or a signal that met it between two
graphs, only a fresh process is believed: where a kept one ends, the graph is tried once more.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from contextlib import suppress
from hashlib import sha256
from typing import BinaryIO

from odm_deploy.errors import InputError
from odm_deploy.machine.openvino_package import import_openvino

_COMMAND = ("-m", "odm_deploy.runtimes.onnx.openvino_probe")
_TIMEOUT_S = 300.0
_IDLE_S = 60.0
_SIZE_BYTES = 8
_ANSWER = b"."
_ENDED_BY_ITSELF = (0, 1, 2)
"""A signal is negative on POSIX, an exception of Windows a large number; Python itself ends with these."""
_COMPILABLE: set[bytes] = set()
"""Hashes of models that need no other process."""


def need_no_probe(model: bytes) -> None:
    """From now on this process compiles a model at once: another one did, or this one may crash."""
    _COMPILABLE.add(sha256(model).digest())


def probe(model: bytes, label: str) -> None:
    """Compile a serialized ONNX model in another process, for the CPU, unless it is known to need that no more.

    A mere refusal is left for the real compilation to report.

    Raises:
        InputError: the other process crashed or hung.
    """
    if sha256(model).digest() in _COMPILABLE:
        return
    try:
        code = compile_elsewhere(model)
    except TimeoutError:
        raise _unusable("does not get done", label, f"it does not end within {_TIMEOUT_S:g} s") from None
    if code not in _ENDED_BY_ITSELF:
        raise _unusable("crashes", label, f"the process that tried ended with {code}")
    need_no_probe(model)


def _unusable(what: str, label: str, why: str) -> InputError:
    return InputError(f"OpenVINO {what} compiling {label}", why=why, fix="use --runtime onnxruntime")


def compile_elsewhere(model: bytes) -> int:
    """Compile a serialized model in the process kept for that, or a new one; safe to call from several threads.

    Returns:
        0, or the code that a fresh process ended with.

    Raises:
        TimeoutError: it took longer than `_TIMEOUT_S`.
    """
    global _kept
    with _lock:
        kept, _kept = _kept, None
        # Of a fork, the process is the parent's.
        if kept is not None and kept.owner == os.getpid() and kept.compiles(model):
            _kept = kept
            return 0
        fresh = _Process()
        if fresh.compiles(model):
            _kept = fresh
            return 0
        return fresh.code


class _Process:
    """Another Python that compiles what it is sent."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, *_COMMAND], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
        )

    def compiles(self, model: bytes) -> bool:
        """Whether it is there to say that it is done, or that OpenVINO refuses the model; else it has ended.

        Raises:
            TimeoutError: it took longer than `_TIMEOUT_S`, and has been ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._process.kill()

        timer = threading.Timer(_TIMEOUT_S, expire)
        timer.daemon = True
        answer = b""
        try:
            timer.start()
            with suppress(OSError):
                self._process.stdin.write(len(model).to_bytes(_SIZE_BYTES, "little") + model)
                self._process.stdin.flush()
                answer = self._process.stdout.read(len(_ANSWER))
            if answer != _ANSWER:
                self._process.wait()
        finally:
            # Also on Ctrl-C: what nobody waits for must not go on, nor its answer be taken for the next one's.
            timer.cancel()
            if answer != _ANSWER:
                self.end()
        if expired.is_set():
            raise TimeoutError
        return answer == _ANSWER

    @property
    def code(self) -> int:
        """What it ended with."""
        return self._process.wait()

    def end(self) -> None:
        """End it, where it has not, and give its pipes back."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):
                stream.close()
        self._process.wait()


_kept: _Process | None = None
_lock = threading.Lock()


@atexit.register
def _end_kept() -> None:
    if _kept is not None and _kept.owner == os.getpid():
        _kept.end()


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """In the other process: compile one model after another, until there are no more."""
    openvino = import_openvino()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    while True:
        idle = threading.Timer(_IDLE_S, os._exit, [0])
        idle.daemon = True
        idle.start()
        size = requests.read(_SIZE_BYTES)
        idle.cancel()
        if len(size) < _SIZE_BYTES:
            return
        model = requests.read(int.from_bytes(size, "little"))
        with suppress(Exception):
            core = openvino.Core()
            core.compile_model(core.read_model(model), "CPU", settings)
        answers.write(_ANSWER)
        answers.flush()


def _main() -> None:
    with os.fdopen(os.dup(1), "wb") as answers:
        # What native code prints is no answer.
        os.dup2(2, 1)
        _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main()
