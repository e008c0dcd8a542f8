"""A real Triton Inference Server, run from the binary that NVIDIA's pytriton package carries."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BACKEND = Path(__file__).resolve().parent / "triton_backend" / "model.py"


class TritonServer:
    """Requests in the KServe protocol, version 2, with Triton's extension for binary tensors."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str) -> Any:
        """The JSON at `path`, such as `models/NAME/config`."""
        with urllib.request.urlopen(f"{self._url}/v2/{path}", timeout=30) as response:
            return json.load(response)

    def is_ready(self, path: str = "health/ready") -> bool:
        """Whether the server, or the model named by `path`, takes requests."""
        try:
            with urllib.request.urlopen(f"{self._url}/v2/{path}", timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    def infer(self, model: str, array: np.ndarray) -> np.ndarray:
        """Run uint8 images through a model with one input and one output."""
        (source,) = self.get(f"models/{model}")["inputs"]
        binary = {"binary_data_size": array.nbytes}
        tensor = {"name": source["name"], "shape": array.shape, "datatype": "UINT8", "parameters": binary}
        head = json.dumps({"inputs": [tensor]}).encode()
        request = urllib.request.Request(f"{self._url}/v2/models/{model}/infer", head + array.tobytes())
        request.add_header("Inference-Header-Content-Length", str(len(head)))
        with urllib.request.urlopen(request, timeout=30) as response:
            (output,) = json.load(response)["outputs"]
        return np.array(output["data"], np.uint8).reshape(output["shape"])


def server_files() -> tuple[Path, Path]:
    """Where the server lies, and its stub for this version of Python; skips where pytriton is not installed."""
    package = importlib.util.find_spec("pytriton")
    if package is None or package.origin is None:
        pytest.skip("no Triton server here: pip install --no-deps nvidia-pytriton")
    home = Path(package.origin).parent / "tritonserver"
    stub = home / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
    if not stub.is_file():
        pytest.skip(f"pytriton has no backend for Python 3.{sys.version_info.minor}")
    return home, stub


@contextmanager
def serve(repository: Path, folder: Path) -> Iterator[tuple[TritonServer, Path]]:
    """Serve a model repository on the loopback interface until the block ends; also gives the server's log."""
    home, stub = server_files()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "model-repository": repository,
        "backend-directory": _backends(home, stub, folder / "backends"),
        "http-address": "127.0.0.1",
        "http-port": port,
        "allow-grpc": "false",
        "allow-metrics": "false",
        # One model that does not load is no reason to stop.
        "exit-on-error": "false",
        "strict-readiness": "false",
    }
    command = [str(home / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in options.items())]
    # What config.pbtxt says has to be enough.
    command.append("--disable-auto-complete-config")
    log = folder / "server.log"
    environment = {**os.environ, "ODM_TRITON_SYS_PATH": os.pathsep.join(path for path in sys.path if path)}
    with (
        log.open("w") as lines,
        subprocess.Popen(command, stdout=lines, stderr=lines, env=environment) as process,
    ):
        try:
            server = TritonServer(f"http://127.0.0.1:{port}")
            deadline = time.monotonic() + 60
            while not server.is_ready():
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.1)
            yield server, log
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def _backends(home: Path, stub: Path, folder: Path) -> Path:
    """A folder of backends: Python's, with the stub for this Python, and `onnxruntime` built on it."""
    (folder / "onnxruntime").mkdir(parents=True)
    (folder / "python").mkdir()
    shutil.copy(BACKEND, folder / "onnxruntime")
    for file in (home / "backends" / "python").iterdir():
        shutil.copy(file, folder / "python")
    # Not a copy: the stub finds its libraries relative to where it lies.
    (folder / "python" / stub.name).symlink_to(stub)
    return folder
