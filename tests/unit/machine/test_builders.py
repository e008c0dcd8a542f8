"""What can build here: stub packages, version windows, GPUs, and the advice when nothing can."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

from odm_deploy.errors import MissingError, UsageError
from odm_deploy.installing import install_extra
from odm_deploy.machine.builders import (
    can_build,
    choose_builder,
    find_builder,
    find_builders,
    pip_command,
)
from odm_deploy.machine.gpus import find_gpus
from tests.conftest import REPOSITORY


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
        return find_builder(module)

    return install


def test_stub_package_is_not_taken_for_tensorrt(site):
    builder = site("tensorrt", "11.4.0")
    assert not builder.usable
    assert "without its libraries" in builder.problem
    assert not can_build(builder)


def test_libraries_beside_the_package_make_it_usable(site):
    builder = site("tensorrt", "11.4.0", "tensorrt_libs/libnvinfer.so.11")
    assert builder.usable
    assert builder.version == "11.4.0"
    # The data-centre library times kernels, so it also needs a GPU to build.
    assert can_build(builder) == bool(find_gpus())


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
    builder = site("tensorrt", version, "tensorrt_libs/libnvinfer.so.1")
    assert f"{version} is outside the supported versions >=10.13,<12" in builder.problem


def test_rtx_needs_its_own_libraries_and_version(site):
    assert ">=1.5" in site("tensorrt_rtx", "1.4.0", "tensorrt_rtx_libs/libtensorrt_rtx.so.1").problem


def test_names_are_spelled_either_way_and_others_are_usage_errors():
    assert find_builder("tensorrt-rtx") == find_builder("tensorrt_rtx")
    with pytest.raises(UsageError, match="tensorrt, tensorrt_rtx"):
        find_builder("openvino")


def test_detection_imports_neither_builder():
    code = (
        "import sys; from odm_deploy.machine import builders, gpus; builders.find_builders(); gpus.find_gpus();"
        "sys.exit(any(name.startswith(('tensorrt', 'torch', 'cuda')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_choice_follows_what_can_build():
    buildable = [builder for builder in find_builders() if can_build(builder)]
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


@pytest.mark.parametrize(
    ("cuda_major", "extra"), [(None, "gpu"), (11, "gpu-cu12"), (12, "gpu-cu12"), (13, "gpu-cu13"), (14, "gpu-cu13")]
)
def test_the_pip_command_fits_the_driver(cuda_major, extra):
    command = pip_command("tensorrt", cuda_major)
    assert command.startswith(install_extra(extra))
    assert "https://pypi.nvidia.com" in command
    assert pip_command("tensorrt_rtx", cuda_major) == install_extra("rtx")
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra, "rtx"} <= set(declared)
