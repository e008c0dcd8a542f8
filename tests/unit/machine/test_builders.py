"""What can build here: stub packages, version windows, GPUs, and the advice when nothing can."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import tomllib

import pytest

from odm_deploy.errors import MissingError, UsageError
from odm_deploy.machine.builders import (
    Gpu,
    _query_driver,
    can_build,
    choose_builder,
    find_flavour,
    find_flavours,
    find_gpus,
    pip_command,
)
from tests.conftest import REPOSITORY

DRIVER = r"""
#include <string.h>
#include <stddef.h>
static int first(int device) { return device == 40; }
int cuInit(unsigned flags) { return RESULT; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return 0; }
int cuDeviceGetName(char *name, int size, int device)
{ strncpy(name, first(device) ? "NVIDIA One" : "NVIDIA Two", size); return 0; }
int cuDeviceGetAttribute(int *value, int which, int device)
{ *value = which == 75 ? 8 : first(device) ? 6 : 9; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device)
{ *bytes = (size_t)24 << 30; return first(device) ? 0 : FAIL_SECOND; }
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Lays out packages like pip does, in a folder at the front of the import path."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    monkeypatch.syspath_prepend(tmp_path)

    def install(module, version, *libraries, package=""):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text("raise ImportError('detection must not import')")
        info = tmp_path / f"{package or module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package or module}\nVersion: {version}\n")
        for library in libraries:
            path = tmp_path / library
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"")
        return find_flavour(module)

    return install


@pytest.fixture
def driver(tmp_path):
    """Compiles a CUDA driver with two GPUs."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")

    def compile_driver(result=0, fail_second=0):
        (tmp_path / "cuda.c").write_text(DRIVER)
        macros = [f"-DRESULT={result}", f"-DFAIL_SECOND={fail_second}"]
        library = tmp_path / f"libcuda{result}{fail_second}.so"
        command = [compiler, "-shared", "-fPIC", *macros, "-o", library, tmp_path / "cuda.c"]
        subprocess.run(command, check=True, timeout=60)
        return ctypes.CDLL(str(library))

    return compile_driver


def test_stub_package_is_not_taken_for_tensorrt(site):
    flavour = site("tensorrt", "11.4.0")
    assert not flavour.usable
    assert "without its libraries" in flavour.problem
    assert not can_build(flavour)


def test_libraries_beside_the_package_make_it_usable(site):
    flavour = site("tensorrt", "11.4.0", "tensorrt_libs/libnvinfer.so.11")
    assert flavour.usable
    assert flavour.version == "11.4.0"
    # The data-centre library times kernels, so it also needs a GPU to build.
    assert can_build(flavour) == bool(find_gpus())


@pytest.mark.parametrize("package", ["tensorrt_cu12", "tensorrt_cu13_bindings", "tensorrt_bindings"])
def test_version_is_found_whichever_package_brought_the_module(site, package):
    assert site("tensorrt", "10.13.3.9", package=package).version == "10.13.3.9"


def test_libraries_on_the_loader_path_count(site, tmp_path, monkeypatch):
    folder = tmp_path / "TensorRT" / "lib"
    folder.mkdir(parents=True)
    (folder / "libnvinfer.so.10").write_bytes(b"")
    monkeypatch.setenv("LD_LIBRARY_PATH" if sys.platform != "win32" else "PATH", str(folder))
    assert site("tensorrt", "10.13.2.6").usable


@pytest.mark.parametrize("version", ["8.6.1", "10.12.0", "12.0.0"])
def test_versions_outside_the_window_are_refused(site, version):
    flavour = site("tensorrt", version, "tensorrt_libs/libnvinfer.so.1")
    assert f"{version} is outside the supported versions >=10.13,<12" in flavour.problem


def test_rtx_needs_its_own_libraries_and_version(site):
    assert ">=1.5" in site("tensorrt_rtx", "1.4.0", "tensorrt_rtx_libs/libtensorrt_rtx.so.1").problem


def test_names_are_spelled_either_way_and_others_are_usage_errors():
    assert find_flavour("tensorrt-rtx") == find_flavour("tensorrt_rtx")
    with pytest.raises(UsageError, match="tensorrt, tensorrt_rtx"):
        find_flavour("openvino")


def test_detection_imports_neither_flavour():
    code = (
        "import sys; from odm_deploy.machine import builders; builders.find_flavours(); builders.find_gpus();"
        "sys.exit(any(name.startswith(('tensorrt', 'torch', 'cuda')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_choice_follows_what_can_build():
    buildable = [flavour for flavour in find_flavours() if can_build(flavour)]
    if buildable:
        assert choose_builder() == buildable[0]
    else:
        with pytest.raises(MissingError):
            choose_builder()


def test_missing_builder_comes_with_the_command_that_brings_it(site):
    stub = site("tensorrt", "11.4.0")
    with pytest.raises(MissingError) as caught:
        choose_builder("tensorrt")
    assert caught.value.exit_code == 4
    assert stub.problem in str(caught.value)
    assert "pip install" in caught.value.fix
    assert "pypi.nvidia.com" in caught.value.fix


def test_driver_is_asked_for_names_capabilities_and_memory(driver):
    gpus = _query_driver(driver())
    assert gpus == (Gpu(0, "NVIDIA One", (8, 6), 24576), Gpu(1, "NVIDIA Two", (8, 9), 24576))
    assert gpus[1].sm == "SM89"


def test_failing_driver_or_device_is_no_exception(driver):
    assert _query_driver(driver(result=100)) == ()
    assert [gpu.index for gpu in _query_driver(driver(fail_second=2))] == [0]
    assert _query_driver(None) == ()


@pytest.mark.parametrize(
    ("cuda_major", "extra"), [(None, "gpu"), (11, "gpu-cu12"), (12, "gpu-cu12"), (13, "gpu-cu13"), (14, "gpu-cu13")]
)
def test_the_pip_command_fits_the_driver(cuda_major, extra):
    command = pip_command("tensorrt", cuda_major)
    assert f"odm-deploy[{extra}]" in command
    assert "https://pypi.nvidia.com" in command
    assert pip_command("tensorrt_rtx", cuda_major) == 'pip install "odm-deploy[rtx]"'
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra, "rtx"} <= set(declared)
