"""Hostile images: a clear line each, the rest of the folder still done, an exit code that tells so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from odm_deploy.checkpoint import save_model
from odm_deploy.engine import Engine
from odm_deploy.errors import InputError
from odm_deploy.imaging.reading import list_images, read_image
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.terminal import one_line
from tests.command_line import run_cli
from tests.factories import exact_model
from tests.hostile_images import REFUSED, UPSCALED, write_hostile_images

pytestmark = pytest.mark.skipif(os.name != "posix", reason="makes named pipes and names that only POSIX allows")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    save_model(exact_model(), folder / "model.pt")
    assert run_cli("export", folder / "model.pt", "-o", folder / "bundle", "--no-engine").code == 0
    write_hostile_images(folder / "in")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own: an image that crashed or hung it would show."""
    options = ["--model", "bundle", "--runtime", "onnxruntime", "--threads", "1", "--json"]
    command = [sys.executable, "-m", "odm_deploy", "upscale", "in", "out", *options]
    # Paths relative to the folder: lines then hold nothing but what the command says.
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def test_the_exit_code_and_the_last_line_count_the_failures(run):
    assert run.returncode == 1
    total = len(REFUSED) + len(UPSCALED)
    assert run.stderr.splitlines()[-1] == (
        f"error: {len(REFUSED)} of {total} images were not upscaled: each is named above"
    )


def test_nothing_but_lines_of_their_own(run):
    lines = run.stderr.splitlines()
    assert len([line for line in lines if line.startswith("error: cannot read image")]) == len(REFUSED)
    assert len(lines) == len(REFUSED) + 1
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("name", list(REFUSED), ids=ascii)
def test_each_refused_image_has_a_line_with_why_and_what_to_do(run, folder, name):
    (line,) = [line for line in run.stderr.splitlines() if one_line(f"in/{name}: ") in line]
    assert line.startswith(one_line(f"error: cannot read image in/{name}: "))
    assert REFUSED[name] in line
    assert "; " in line.removeprefix("error: "), "what to do is missing"
    assert not (folder / "out" / Path(name).with_suffix(".png")).exists()


@pytest.mark.parametrize("name", list(UPSCALED), ids=ascii)
def test_all_others_are_upscaled(run, folder, name):
    source = read_image(folder / "in" / name, max_bits=16)
    found = read_image(folder / "out" / Path(name).with_suffix(".png"), max_bits=16)
    assert (found.bits, source.bits) == ((16, 16) if name == "deep.png" else (8, 8))
    assert (found.alpha is None) == (name != "palette.png")
    with Engine.open(folder / "bundle", "onnxruntime", RuntimeOptions(threads=1)) as engine:
        np.testing.assert_array_equal(found.rgb, engine.upscale(source.rgb, bits=source.bits))


def test_json_names_every_image(run):
    images = json.loads(run.stdout)["images"]
    assert len(images) == len(REFUSED) + len(UPSCALED)
    assert {Path(image["input"]).name for image in images if "error" in image} == set(REFUSED)


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("locked", "read", "line"),
    [
        ("file", read_image, r"cannot read image .*x\.png: Permission denied; "),
        ("folder", read_image, r"cannot read image .*x\.png: Permission denied; "),
        ("folder", lambda path: list_images(path.parent), "cannot list the images of .*: Permission denied; "),
    ],
)
def test_what_may_not_be_read_is_named(locked, read, line):
    # Below a folder that everybody may enter, unlike those of pytest.
    folder = Path(tempfile.mkdtemp())
    path = folder / "x.png"
    path.write_bytes(b"secret")
    path.chmod(0o600 if locked == "file" else 0o644)
    folder.chmod(0o755 if locked == "file" else 0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=line):
            read(path)
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)
