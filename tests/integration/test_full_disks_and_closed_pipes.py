"""Places that take no more: a full device, an output nobody reads, and an output that is the input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from odm_deploy.checkpoint import save_model
from odm_deploy.errors import InputError
from odm_deploy.files import atomic_directory, write_text
from tests.command_line import run_cli
from tests.factories import exact_model

FULL = Path("/dev/full")
VERB = [sys.executable, "-m", "odm_deploy", "doctor", "--json"]


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("verb", [["doctor", "--json"], ["doctor"], ["lint", "--rules"]])
def test_a_full_output_is_one_line(verb):
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "odm_deploy", *verb], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "error: cannot write the output: No space left on device\n")


def test_an_output_nobody_reads_any_more_says_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(VERB, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(os.name != "posix", reason="its shell closes streams")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_lead_nowhere(closed, tmp_path):
    program = (
        "import sys, click; from odm_deploy.terminal import run, say\n"
        "def work():\n"
        "    with open('result', 'w') as file: click.echo('told'); say('said'); print(file.fileno(), file=file)\n"
        "run(click.Command('work', callback=work), 'work')"
    )
    call = f'exec "$0" -c "$1" {closed}'
    done = subprocess.run(["sh", "-c", call, sys.executable, program], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert int((tmp_path / "result").read_text()) > 2


@pytest.mark.parametrize("size", ["64k", "8k"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("small disks cannot be mounted here")
    try:
        with pytest.raises(InputError, match="No space left on device"):
            write_text(disk / "a.txt", "x" * (1 << 17))
        with pytest.raises(InputError, match="No space left on device"), atomic_directory(disk / "b") as folder:
            (folder / "manifest.json").write_text("{}" * (1 << 17))
        (disk / "filler").write_bytes(bytes({"64k": 56, "8k": 4}[size] << 10))
        with pytest.raises(InputError, match="No space left on device"):
            save_model(exact_model(), disk / "model.pt")
        assert [path.name for path in disk.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "b"):
        (tmp_path / "gone").read_bytes()


@pytest.mark.parametrize("link", [False, True], ids=["itself", "by another name"])
def test_no_verb_writes_over_its_input(tmp_path, tiny_bundle, link):
    image, weights, graph = (tmp_path / name for name in ("a.png", "w.pt", "m.onnx"))
    PillowImage.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    weights.write_bytes(b"weights")
    shutil.copy(tiny_bundle / "model.onnx", graph)
    before = {path: path.read_bytes() for path in (image, weights, graph)}
    other = {path: path.with_stem("other") for path in before} if link else {path: path for path in before}
    if link:
        for path, target in other.items():
            target.symlink_to(path)
    for done in (
        run_cli("upscale", image, other[image], "--model", tiny_bundle),
        run_cli("quantize", weights, "--images", tmp_path, "-o", other[weights]),
        run_cli("lint", graph, "--fix", "-o", other[graph]),
    ):
        assert done.code == 2
        assert "it is the input, which would be lost; name another file" in done.stderr
    assert {path: path.read_bytes() for path in before} == before
