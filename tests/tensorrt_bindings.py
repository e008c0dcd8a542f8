"""The real Python bindings of TensorRT, importable on machines that have none of its libraries.

Put wheels for this Python into a folder and name it in TENSORRT_BINDINGS:

pip download --no-deps -d wheels tensorrt-cu13-bindings==11.4.0.106
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from odm_deploy.machine.builders import find_builder

_SOURCE = Path(__file__).with_name("tensorrt_libraries.c")
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def find_wheels() -> list[Path]:
    """Wheels of the bindings for this Python; empty where none were named."""
    folder, python = os.environ.get("TENSORRT_BINDINGS"), f"cp{sys.version_info.major}{sys.version_info.minor}"
    return sorted(Path(folder).glob(f"tensorrt_cu*_bindings-*-{python}-*.whl")) if folder else []


def skip_reason() -> str:
    """Why the tests of real bindings cannot run here; empty when they can."""
    if not find_wheels():
        return "TENSORRT_BINDINGS names no folder with wheels such as tensorrt_cu13_bindings"
    return "" if shutil.which("cc") else "no C compiler"


@dataclass(frozen=True)
class Bindings:
    """One version, unpacked into `folder`."""

    folder: Path
    version: str

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    def run(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run Python in a process in which `import tensorrt` means these bindings."""
        environment = {"LD_LIBRARY_PATH": str(self.folder), "PYTHONPATH": str(self.folder), **_rtx()}
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **environment},
            cwd=_SOURCE.parents[1],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


def unpack(wheel: Path, folder: Path) -> Bindings:
    """Make one version importable as `tensorrt`."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    version = wheel.name.split("-")[1]
    (folder / "tensorrt.py").write_text("from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n")
    for name in _LIBRARIES:
        library = folder / f"lib{name}.so.{version.partition('.')[0]}"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"], check=True)
    return Bindings(folder, version)


def _rtx() -> dict[str, str]:
    """Where TensorRT for RTX has its libraries, and its version as a number; empty where it is not installed."""
    spec, version = importlib.util.find_spec("tensorrt_rtx_libs"), find_builder("tensorrt_rtx").version
    if spec is None or spec.origin is None:
        return {}
    folder = Path(spec.origin).parent
    major, minor, patch, *_ = map(int, version.split("."))
    return {
        "RTX_CORE": str(next(folder.glob("libtensorrt_rtx.so*"))),
        "RTX_PARSER": str(next(folder.glob("libtensorrt_onnxparser_rtx.so*"))),
        "RTX_VERSION": str(10_000 * major + 100 * minor + patch),
    }
