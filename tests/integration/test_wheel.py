"""The built wheel: the same bytes from the same sources, and an installation of it with each extra alone.

The latter takes minutes and a package index, so it runs where ODM_TEST_WHEEL=1 says so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.exact_models import calibrated_exact

SOURCES = ("odm_deploy", "pyproject.toml", "README.md", "LICENSE")
"""What a wheel is built from."""


def built(sources: Path, out: Path, mask: int, *, alone: bool = True) -> Path:
    """The wheel of a folder, built under a mask of permissions, without an index where that has to do."""
    words = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps"]
    words += ["--no-build-isolation", "--no-index"] if alone else []
    # pip's own cache would give the first one twice.
    words += ["--no-cache-dir", "-w", out, sources]
    subprocess.run(words, check=True, timeout=300, umask=mask)
    (wheel,) = out.glob("*.whl")
    return wheel


def copied(folder: Path, *, mode: int, age_s: int) -> Path:
    """The sources elsewhere, with other times and permissions."""
    folder.mkdir(parents=True)
    for name in SOURCES:
        source = REPOSITORY / name
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / name, ignore=leave) if source.is_dir() else shutil.copy(source, folder)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
        os.utime(path, (1_600_000_000 + age_s,) * 2)
    return folder


@pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling, which builds it, is not installed"
)
def test_two_builds_of_the_same_sources_are_the_same_bytes(tmp_path):
    one = built(copied(tmp_path / "one", mode=0o644, age_s=0), tmp_path / "1", 0o022)
    other = built(copied(tmp_path / "deep/er/other", mode=0o600, age_s=86_400), tmp_path / "2", 0o077)
    assert one.name == other.name
    assert hashlib.sha256(one.read_bytes()).hexdigest() == hashlib.sha256(other.read_bytes()).hexdigest()
    with zipfile.ZipFile(one) as archive:
        names = archive.namelist()
    assert "odm_deploy/cli/verify.py" in names
    # Nothing but the package and what is said about it.
    assert {name.partition("/")[0] for name in names} == {"odm_deploy", f"{one.name.rpartition('-py3')[0]}.dist-info"}


EXTRAS = {
    "": (["upscale", "{photo}", "{out}", "--model", "{bundle}"], 4, "[cpu]"),
    "cpu": (["upscale", "{photo}", "{out}", "--model", "{bundle}"], 0, "wrote"),
    "export": (["export", "{model}", "-o", "{out}", "--no-engine"], 0, "wrote"),
    "train": (["export", "{model}", "-o", "{out}", "--no-engine"], 0, "wrote"),
    "report": (["report", "{bundle}", "--images", "{photo}", "-o", "{page}"], 4, "[cpu]"),
    "serve": (["serve", "--model", "{bundle}", "--port", "0"], 4, "[cpu]"),
    "video": (["upscale", "{photo}", "{out}", "--model", "{bundle}"], 4, "[cpu]"),
    "rtx": (["build", "{bundle}", "--shapes", "1x3x16x16"], 0, "engine"),
    "tensorboard": (["doctor"], 0, ""),
    "spandrel": (["inspect", "{model}"], 0, ""),
}
"""For each extra alone: a command, its exit code, and what it says: what is there works, what is not is named."""


@pytest.mark.skipif(os.environ.get("ODM_TEST_WHEEL") != "1", reason="takes minutes and an index: ODM_TEST_WHEEL=1")
@pytest.mark.parametrize("extra", EXTRAS)
def test_the_wheel_works_alone_with_one_extra(extra, tmp_path):
    from PIL import Image

    from odm_deploy.checkpoint import save_model
    from tests.command_line import run_cli

    save_model(calibrated_exact("edsr"), tmp_path / "model.pt")
    assert run_cli("export", tmp_path / "model.pt", "-o", tmp_path / "bundle", "--no-engine").code == 0
    Image.new("RGB", (24, 16), (80, 120, 200)).save(tmp_path / "photo.png")
    wheel = built(copied(tmp_path / "sources", mode=0o644, age_s=0), tmp_path / "dist", 0o022, alone=False)
    environment = tmp_path / "environment"
    try:
        done = in_environment(environment, f"{wheel}[{extra}]" if extra else str(wheel), line_of(extra, tmp_path))
    finally:
        # Gigabytes, which pytest would keep.
        shutil.rmtree(environment, ignore_errors=True)
    _, code, said = EXTRAS[extra]
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def line_of(extra: str, folder: Path) -> list[str]:
    """The words of an extra's command."""
    names = {"photo": "photo.png", "model": "model.pt", "bundle": "bundle", "out": "out.png", "page": "page.html"}
    places = {name: str(folder / file) for name, file in names.items()}
    return [word.format(**places) for word in EXTRAS[extra][0]]


def in_environment(environment: Path, wanted: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Install a requirement into an environment of its own, and run its command there."""
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=120)
    install = [environment / "bin" / "python", "-m", "pip", "install", "-q", "-c", REPOSITORY / "constraints.txt"]
    subprocess.run([*install, wanted], check=True, timeout=1200)
    # Elsewhere, and without this process's paths: they lead to the sources.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    line = [environment / "bin" / "odm-deploy", *words]
    return subprocess.run(line, cwd=environment, env=clean, capture_output=True, text=True, check=False, timeout=300)
