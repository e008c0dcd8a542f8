"""What a new user gets wrong, in real processes: one line that says what it is, what is wanted, and what to run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from odm_deploy.imaging.writing import write_image
from odm_deploy.machine.gpus import find_gpus
from tests.command_line import without_progress
from tests.conftest import REPOSITORY
from tests.factories import random_images

TO_BUNDLE = r"a bundle is wanted.*make a bundle with: odm-deploy export model\.pt -o DIR"
NO_GPU = r"there is no NVIDIA GPU that the driver can use"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_bundle, tiny_checkpoint):
    """A user's folder: photos, a video, a model.pt, a bundle."""
    made = tmp_path_factory.mktemp("user")
    (made / "photos").mkdir()
    for name in ("a.png", "b.png"):
        write_image(made / "photos" / name, random_images(12, 10)[0].transpose(1, 2, 0).astype(np.uint8))
    (made / "clip.mp4").write_bytes(b"no video at all")
    (made / "model.pt").symlink_to(tiny_checkpoint)
    (made / "weights.pth").symlink_to(tiny_checkpoint)
    (made / "bundle").symlink_to(tiny_bundle)
    os.mkfifo(made / "pipe.plan")
    (made / "use.py").write_text("from odm_deploy import Engine\nEngine.open('model.pt')\n")
    return made


@pytest.mark.parametrize(
    ("command", "code", "line"),
    [
        ("upscale photos photo.png --model bundle", 2, r"cannot write photo\.png: photos is many images, and this names"
         r" one file; name a folder, such as photo"),
        ("upscale photos clip.mp4 --model bundle", 2, r"photos is many images.*ffmpeg"),
        ("upscale photos/a.png out.avi --model bundle", 2, r"no video is written as \.avi; end OUT in .*\.mp4"),
        ("upscale clip.mp4 out.avi --model bundle", 2, r"clip\.mp4 is a video.*end OUT in .*\.mp4"),
        ("upscale clip.mp4 out.png --model bundle", 2, r"clip\.mp4 is a video.*end OUT in .*\.mp4"),
        ("upscale photos/a.png out.mp4 --model bundle", 2, r"photos/a\.png is an image; end OUT in \.png"),
        ("upscale photos/a.png out.png", 2, r"missing option '--model'; odm-deploy upscale --help"),
        ("upscale photos/a.png out.png --modle bundle", 2, r"no such option.*--model"),
        ("upscale photos/a.png out.png --model model.pt", 1, TO_BUNDLE),
        ("serve --model model.pt", 1, TO_BUNDLE),
        ("verify model.pt", 1, TO_BUNDLE),
        ("bench model.pt", 1, TO_BUNDLE),
        ("build model.pt", 1, TO_BUNDLE),
        ("report model.pt --images photos -o page.html", 1, TO_BUNDLE),
        ("bench weights.pth", 1, r"odm-deploy quantize weights\.pth --images DIR --export DIR"),
        *(
            (f"{verb} {name}", 1, rf"cannot (load|read) {name}: there is no such file; check the path$")
            for verb, name in (
                *((verb, "nowhere.onnx") for verb in ("lint", "inspect", "verify", "bench", "build", "export")),
                *((verb, "nowhere.pt") for verb in ("lint", "inspect", "verify", "bench", "build", "export")),
                *((f"{verb} --images photos", "nowhere.onnx") for verb in ("quantize -o q.pt", "sensitivity")),
                ("eval --dataset photos", "nowhere.onnx"),
                ("upscale photos/a.png out.png --model", "nowhere.onnx"),
                ("serve --model", "nowhere.onnx"),
            )
        ),
        ("export bundle", 1, r"cannot read bundle: it is a bundle; .*model\.pt is wanted"),
        ("export photos", 1, r"cannot read photos: it is a folder; .*model\.pt is wanted"),
        ("export bundle/model.onnx -o other", 1, r"it is an ONNX file; .*model\.pt is wanted"),
        ("quantize bundle --images photos -o q.pt", 1, r"cannot read bundle: it is a bundle"),
        ("quantize model.pt --images photos -o q.pt --network realesrgan", 2, r"no network 'realesrgan': .*edsr, rdn.*"
         r"leave --network out for Real-ESRGAN"),
        ("bench pipe.plan", 1, r"cannot load pipe\.plan: it is no regular file, but a pipe"),
        ("quantize pipe.plan --images photos -o q.pt", 1, r"cannot read pipe\.plan: it is no regular file, but a pipe"),
        ("verify bundle --images pipe.plan", 1, r"cannot read image pipe\.plan: it is no regular file, but a pipe"),
        ("quantize model.pt --images photos -o pipe.plan", 1, r"cannot write pipe\.plan: it is no regular file, but"),
        ("quantize model.pt --images photos -o use.py/q.pt", 1, r"cannot write use\.py/q\.pt: .*use\.py is no folder"),
        ("upscale photos use.py/out --model bundle", 1, r"cannot write use\.py/out.*: .*use\.py is no folder"),
        ("verify bundle --images photos --markdown photos", 1, r"cannot write photos: it is a folder"),
        ("report bundle --images photos -o use.py/x.html", 1, r"cannot write use\.py/x\.html: .*use\.py is no folder"),
        ("bench photos/a.png", 1, r"cannot load photos/a\.png: a bundle is wanted, .*this is an image; make a bundle"),
        ("inspect clip.mp4", 1, r"a bundle, an ONNX file or a model\.pt is wanted, and this is a video; make"),
        ("lint photos/a.png", 1, r"this is an image"),
        ("lint model.pt", 1, r"this is the name of a checkpoint"),
        ("upscale photos/a.png out.png --model bundle/manifest.json", 1, r"this is JSON; name its folder: bundle"),
        ("quantize photos/a.png --images photos -o q.pt", 1, r"is not a torch file: it is a PNG image; a file of float"
         r" weights is wanted$"),
        ("quantize use.py --images photos -o q.pt", 1, r"it is text; a file of float weights is wanted$"),
        ("export use.py -o other", 1, r"it is text; a model\.pt is wanted, as odm-deploy quantize writes it$"),
        ("lint use.py", 1, r"an ONNX file or a bundle is wanted, and this is text; "),
        ("bench use.py", 1, r"a bundle is wanted, a model\.onnx or an engine\.plan, and this is text; "),
        ("upscale photos/a.png photos/b.png out.png --model bundle", 2, r"3 names were given.*quote it, 'photos/"),
        ("upscale bundle out.png --model bundle", 2, r"it is a bundle, not images; use it with --model bundle"),
        ("quantize model.pt --images photos -o q.pt --network EDDSR", 2, r"spandrel; did you mean edsr\?"),
        ("serv --model bundle", 2, r"there is no command serv; did you mean serve\?"),
        ("zzz", 2, r"there is no command zzz; use quantize, "),
        ("eval bundle --dataset photos", 1, r"photos is no benchmark set: it has no folder HR; lay it out as"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_helps(folder: Path, command: str, code: int, line: str) -> None:
    before = sorted(folder.rglob("*"))
    done = in_a_process(folder, "-m", "odm_deploy", *command.split())
    assert done.returncode == code, done.stderr
    (said,) = without_progress(done.stderr).splitlines()
    assert re.match(f"error: .*{line}", said), said
    assert sorted(folder.rglob("*")) == before


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
@pytest.mark.parametrize(
    ("runtime", "command"),
    [
        ("tensorrt", "bench bundle"),
        ("tensorrt_rtx", "upscale photos/a.png out.png --model bundle"),
        ("onnxruntime_cuda", "verify bundle --images photos --against model.pt"),
        ("onnxruntime_tensorrt", "bench bundle"),
    ],
)
def test_without_a_gpu_that_is_what_is_said(folder: Path, runtime: str, command: str) -> None:
    done = in_a_process(folder, "-m", "odm_deploy", *command.split(), "--runtime", runtime)
    assert done.returncode == 4, done.stderr
    (said,) = without_progress(done.stderr).splitlines()
    assert re.match(rf"error: {runtime} cannot run here: {NO_GPU}; .*--runtime openvino", said), said
    assert "BUNDLE" not in said


def test_python_is_told_the_same(folder: Path) -> None:
    done = in_a_process(folder, "use.py")
    assert done.returncode == 1
    assert re.search(TO_BUNDLE, done.stderr.splitlines()[-1])


def test_an_image_alone_finds_its_truth_as_its_folder_does(samples: Path, tmp_path: Path) -> None:
    from odm_deploy.imaging.pairs import find_samples

    lower = samples / "LR_bicubic" / "X4"
    of_folder = {sample.low: sample.truth for sample in find_samples(lower, None, 4)}
    assert None not in of_folder.values()
    for path, truth in of_folder.items():
        assert [sample.truth for sample in find_samples(path, None, 4)] == [truth]
    assert [sample.truth for sample in find_samples(lower / "*.png", None, 4)] == list(of_folder.values())


def in_a_process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
