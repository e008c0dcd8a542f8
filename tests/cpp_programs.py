"""Compiling `tools/cpp` in tests, against headers that are not in the repository.

`ONNXRUNTIME_HOME` and `TENSORRT_HOME` name folders with an `include/`; a `lib/` there is used too, and where it is
missing the libraries of the installed wheels are: then C++ and Python run the same binary code.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def compile_program(name: str, folder: Path) -> Path:
    """Build `upscale_onnxruntime` or `upscale_tensorrt` below `folder`; skips where something for it is missing."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if name == "upscale_onnxruntime":
        variable, header, wheel, pattern = (
            "ONNXRUNTIME_HOME",
            "onnxruntime_cxx_api.h",
            "onnxruntime",
            "capi/libonnxruntime.so*",
        )
    else:
        variable, header, wheel, pattern = (
            "TENSORRT_HOME",
            "NvInferRuntime.h",
            "tensorrt_rtx_libs",
            "libtensorrt_rtx.so*",
        )
    home = Path(os.environ.get(variable, ""))
    if not (home / "include" / header).is_file():
        pytest.skip(f"set {variable} to a folder with include/{header}")
    # Only the program asked for: the other one's headers may be missing or broken.
    others = {"ONNXRUNTIME_HOME": "", "TENSORRT_HOME": "", variable: str(home)}
    if not (home / "lib").is_dir():
        if wheel == "onnxruntime":
            others = {"TENSORRT_HOME": "", "ONNXRUNTIME_PYTHON": sys.executable}
            others["ONNXRUNTIME_INCLUDE"] = str(home / "include")
        else:
            others[variable] = str(_with_wheel_library(folder / "home", home / "include", wheel, pattern))
    definitions = [f"-D{key}={value}" for key, value in others.items()]
    build = folder / "build"
    environment = {**os.environ, "CXXFLAGS": "-Werror"}
    for command in (
        ["cmake", "-S", str(REPOSITORY / "tools" / "cpp"), "-B", str(build), *definitions],
        ["cmake", "--build", str(build)],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / name


def _with_wheel_library(home: Path, include: Path, package: str, pattern: str) -> Path:
    """A folder as cmake wants it: the headers beside the wheel's library, under the name programs load it by."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed, and there is no lib/ beside the headers")
    library = next(Path(spec.origin).parent.glob(pattern), None)
    if library is None:
        pytest.skip(f"the {package} wheel carries no {pattern} on this system")
    (home / "lib").mkdir(parents=True)
    (home / "include").symlink_to(include.resolve())
    stem, _, version = library.name.partition(".so.")
    (home / "lib" / f"{stem}.so.{version.split('.')[0]}").symlink_to(library)
    return home
