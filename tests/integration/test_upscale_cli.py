"""`odm-deploy upscale`: the network's own pixels, with and without tiles, alpha and gray kept."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from torch import nn

from odm_deploy import quantize
from odm_deploy.bundle.manifest import read_manifest
from odm_deploy.checkpoint import save_model
from odm_deploy.cli.upscale_images import upscale_files
from odm_deploy.engine import Engine
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.pixels import to_pixels
from odm_deploy.imaging.reading import read_image
from odm_deploy.imaging.writing import write_image
from odm_deploy.proof.reference import TorchReference
from odm_deploy.upscaling.batch import plan_jobs
from odm_deploy.upscaling.y4m import Y4m
from tests.command_line import run_cli
from tests.factories import exact_model, random_images
from tests.video_clips import frame_times_s, write_clip


@pytest.fixture(scope="module")
def exact_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    save_model(exact_model(), folder / "model.pt")
    assert run_cli("export", folder / "model.pt", "-o", folder / "bundle", "--no-engine").code == 0
    return folder / "bundle"


def rgb(height, width, seed=0):
    return random_images(height, width, seed=seed)[0].transpose(1, 2, 0).astype(np.uint8)


def expected(image):
    return to_pixels(TorchReference(exact_model()).upscale(image.transpose(2, 0, 1)[None].astype(np.float32)))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("tile", [0, 24])
def test_pixels_are_the_references_and_tiles_leave_no_seam(exact_bundle, tmp_path, runtime, tile):
    image = rgb(37, 61)
    write_image(tmp_path / "in.png", image)
    options = ("--model", exact_bundle, "--runtime", runtime, "--tile", tile, "--json")
    outcome = run_cli("upscale", tmp_path / "in.png", tmp_path / "out.png", *options)
    assert outcome.code == 0, outcome.stderr
    np.testing.assert_array_equal(read_image(tmp_path / "out.png").rgb, expected(image))
    document = outcome.document
    assert (document["size"], document["tile"]) == ([122, 74], tile)
    assert document["runtime"]["runtime"] == runtime


def test_alpha_and_gray_go_through_the_same_network(exact_bundle, tmp_path):
    image, alpha = rgb(12, 15), rgb(12, 15, seed=5)[..., 0]
    write_image(tmp_path / "alpha.png", Image(image, alpha, False, None))
    write_image(tmp_path / "gray.png", rgb(12, 15)[..., 1])
    for name in ("alpha", "gray"):
        outcome = run_cli("upscale", tmp_path / f"{name}.png", tmp_path / f"{name}2.png", "--model", exact_bundle)
        assert outcome.code == 0, outcome.stderr
        assert "30x24" in outcome.stderr
        assert outcome.stdout == ""
    found = read_image(tmp_path / "alpha2.png")
    np.testing.assert_array_equal(found.rgb, expected(image))
    np.testing.assert_array_equal(found.alpha, expected(np.repeat(alpha[..., None], 3, 2))[..., 1])
    # These weights tint gray images, so the result has colours and keeps them.
    gray = np.repeat(rgb(12, 15)[..., 1:2], 3, 2)
    np.testing.assert_array_equal(read_image(tmp_path / "gray2.png").rgb, expected(gray))


def test_destination_is_checked_before_any_work(exact_bundle, tmp_path):
    write_image(tmp_path / "in.png", rgb(8, 8))
    outcome = run_cli("upscale", tmp_path / "in.png", tmp_path / "out.bmpx", "--model", exact_bundle)
    assert outcome.code in (1, 2)
    assert "out.bmpx" in outcome.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png"]


def test_a_folder_is_done_despite_hostile_images_and_resumed(exact_bundle, tmp_path):
    folder, results = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "b.jpg", "dot.png"):
        write_image(folder / name, rgb(1, 1) if name == "dot.png" else rgb(9, 12))
    PillowImage.fromarray(rgb(9, 12)).convert("CMYK").save(folder / "cmyk.jpg")
    frames = [PillowImage.fromarray(rgb(9, 12, seed)) for seed in range(2)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    (folder / "truncated.png").write_bytes((folder / "a.png").read_bytes()[:90])
    # A bomb: 20000x20000 pixels said in the header of a file of a few bytes.
    (folder / "bomb.ppm").write_bytes(b"P6 20000 20000 255\n")
    (folder / "text.png").write_text("no image")
    call = ("upscale", folder, results, "--model", exact_bundle)
    first = run_cli(*call, "--json")
    assert first.code == 1
    done = ["a.png", "b.png", "cmyk.png", "dot.png"]
    assert sorted(path.name for path in results.iterdir()) == done
    errors = [line for line in first.stderr.splitlines() if line.startswith("error: cannot read")]
    bad = ("animated.gif", "bomb.ppm", "text.png", "truncated.png")
    assert len(errors) == len(bad)
    assert all(name in line for name, line in zip(bad, errors, strict=True))
    assert first.document["failed"] == 4
    assert "4 of 8 images were not upscaled" in first.stderr
    np.testing.assert_array_equal(read_image(results / "a.png").rgb, expected(rgb(9, 12)))

    made = {name: (results / name).stat().st_mtime_ns for name in done}
    for name in bad:
        (folder / name).unlink()
    second = run_cli(*call)
    assert second.code == 0
    assert "4 of 4 images are done already" in second.stderr
    assert {name: (results / name).stat().st_mtime_ns for name in done} == made
    third = run_cli(*call, "--overwrite", "--format", "webp", "--json")
    assert third.code == 0
    assert (third.document["failed"], third.document["skipped"], len(third.document["images"])) == (0, 0, 4)
    np.testing.assert_array_equal(read_image(results / "a.webp").rgb, expected(rgb(9, 12)))


class Roots(nn.Module):
    """No numbers where an image is dark."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.body, self.last = (nn.Conv2d(3, n, 3, padding=1) for n in (3, 3, 12))

    def forward(self, x):
        return nn.functional.pixel_shuffle(
            self.last(self.body(self.first(x))) + torch.sqrt(x.mean((1, 2, 3), keepdim=True) - 20.0), 2
        )


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_pictures_without_numbers_are_refused_and_the_others_done(tmp_path, runtime):
    model = quantize(Roots(), 8, [torch.full((1, 3, 48, 48), level) for level in (60.0, 200.0)], input_range=255)
    save_model(model, tmp_path / "roots.pt")
    named = f"{__name__}:Roots"
    exported = run_cli("export", tmp_path / "roots.pt", "-o", tmp_path / "roots", "--no-engine", "--trust", named)
    assert exported.code == 0, exported.stderr
    for name, level in (("dark.png", 3), ("gray.png", 90), ("light.png", 220)):
        write_image(tmp_path / "in" / name, np.full((20, 24, 3), level, np.uint8))
    call = ("upscale", tmp_path / "in", tmp_path / "out", "--model", tmp_path / "roots", "--runtime", runtime)
    done = run_cli(*call)
    assert done.code == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gray.png", "light.png"]
    (line,) = [line for line in done.stderr.splitlines() if "dark.png" in line]
    assert "the output holds NaN" in line


def test_a_folder_goes_into_the_one_that_it_lies_in(exact_bundle, tmp_path):
    write_image(tmp_path / "small" / "a.png", rgb(6, 7))
    outcome = run_cli("upscale", tmp_path / "small", tmp_path, "--model", exact_bundle)
    assert outcome.code == 0, outcome.stderr
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").rgb, expected(rgb(6, 7)))


def test_a_pattern_selects_images(exact_bundle, tmp_path):
    for name in ("shot1.png", "shot2.png", "other.png"):
        write_image(tmp_path / name, rgb(6, 7))
    outcome = run_cli("upscale", tmp_path / "shot*.png", tmp_path / "out", "--model", exact_bundle)
    assert outcome.code == 0, outcome.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["shot1.png", "shot2.png"]
    assert "wrote 2 images" in outcome.stderr


def test_a_video_keeps_its_sound(exact_bundle, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    write_clip(tmp_path / "in.mp4", seconds=1, fps=6)
    outcome = run_cli("upscale", tmp_path / "in.mp4", tmp_path / "out.mp4", "--model", exact_bundle, "--json")
    assert outcome.code == 0, outcome.stderr
    document = outcome.document
    assert (document["size"], document["frames"], document["audio_streams"]) == ([128, 96], 6, 1)
    assert frame_times_s(tmp_path / "out.mp4") == pytest.approx(frame_times_s(tmp_path / "in.mp4"))
    for source, destination, code in (("missing.mp4", "out.mp4", 1), ("in.mp4", "in.mp4", 2)):
        assert run_cli("upscale", tmp_path / source, tmp_path / destination, "--model", exact_bundle).code == code


def test_frames_from_a_pipe_are_the_references(exact_bundle):
    frames = [rgb(10, 14, seed) for seed in range(3)]
    command = [sys.executable, "-m", "odm_deploy", "upscale", "-", "-", "--model", exact_bundle, "--size", "14x10"]
    done = subprocess.run(
        command, input=b"".join(frame.tobytes() for frame in frames), capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = np.frombuffer(done.stdout, np.uint8).reshape(3, 20, 28, 3)
    np.testing.assert_array_equal(found, [expected(frame) for frame in frames])
    assert b"wrote 3 frames of 28x20" in done.stderr


def piped(bundle, data, *options):
    command = [sys.executable, "-m", "odm_deploy", "upscale", "-", "-", "--model", bundle, *options]
    return subprocess.run(command, input=data, capture_output=True, check=False, timeout=120)


def test_y4m_from_a_pipe_knows_its_size(exact_bundle):
    header = Y4m.of_header(b"YUV4MPEG2 W14 H10 F30:1 C444")
    stream = io.BytesIO()
    for seed in range(3):
        header.write(stream, rgb(10, 14, seed))
    done = piped(exact_bundle, header.header + stream.getvalue())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"YUV4MPEG2 W28 H20 F30:1 C444 ")
    first = next(header.read(io.BytesIO(stream.getvalue())))
    larger = io.BytesIO()
    header.enlarged(2).write(larger, expected(first))
    assert done.stdout.split(b"FRAME\n")[1] == larger.getvalue().removeprefix(b"FRAME\n")
    assert b"wrote 3 frames of 28x20 y4m" in done.stderr


@pytest.mark.parametrize(
    ("data", "options", "code", "line"),
    [
        (b"", (), 2, b"the size of the frames is not known: nothing came; let ffmpeg write -f yuv4mpegpipe"),
        (bytes(99), (), 2, b"raw frames have no header that would tell; .*add --size"),
        (b"YUV4MPEG2 W14 H10 F30:1 C420\n", (), 1, b"C420, and C444 is read; add -pix_fmt yuv444p"),
        (b"YUV4MPEG2 W14 H10 C444\n" + bytes(999), ("--size", "14x10"), 1, b"it is y4m.*leave --size out"),
        (bytes(400), ("--size", "14x10"), 1, b"raw video ends within frame 0: 400 of the 420 bytes"),
    ],
)
def test_what_does_not_fit_through_the_pipe_is_said(exact_bundle, data, options, code, line):
    done = piped(exact_bundle, data, *options)
    assert done.returncode == code
    assert done.stdout == b""
    assert re.fullmatch(b"error: .*" + line + b".*\n", done.stderr), done.stderr


@pytest.mark.parametrize("options", [("--size", "14"), ("--size", "14x0"), ("--size", "14x10", "--json")])
def test_pipes_need_a_size_that_is_one_and_stdout_alone(exact_bundle, options):
    assert run_cli("upscale", "-", "-", "--model", exact_bundle, *options).code == 2


@pytest.mark.parametrize("ends", [("-", "out.mp4"), ("in.png", "-"), ("in.png", "out.png")])
def test_a_pipe_has_two_ends(exact_bundle, ends):
    assert run_cli("upscale", *ends, "--model", exact_bundle, "--size", "14x10").code == 2


def test_quality_is_for_videos_only(exact_bundle, tmp_path):
    write_image(tmp_path / "in.png", rgb(8, 8))
    outcome = run_cli("upscale", tmp_path / "in.png", tmp_path / "out.png", "--model", exact_bundle, "--crf", 20)
    assert outcome.code == 2
    assert "--crf" in outcome.stderr


def test_blended_tiles_are_told(exact_bundle, tmp_path):
    folder = tmp_path / "unbounded"
    shutil.copytree(exact_bundle, folder)
    dataclasses.replace(read_manifest(folder), receptive_radius_px=None).write(folder)
    write_image(tmp_path / "in.png", rgb(20, 130))
    outcome = run_cli("upscale", tmp_path / "in.png", tmp_path / "out.png", "--model", folder, "--tile", 96)
    assert outcome.code == 0, outcome.stderr
    assert "tiles of 96 pixels fade" in outcome.stderr
    np.testing.assert_array_equal(read_image(tmp_path / "out.png").rgb, expected(rgb(20, 130)))


def test_images_of_a_folder_in_formats_that_are_not_read_are_named(exact_bundle, tmp_path):
    write_image(tmp_path / "in/a.png", rgb(12, 15))
    PillowImage.fromarray(rgb(12, 15)).save(tmp_path / "in/b.jfif", format="JPEG")
    (tmp_path / "in/c.heic").write_bytes(b"x")
    (tmp_path / "in/notes.txt").write_bytes(b"x")
    outcome = run_cli("upscale", tmp_path / "in", tmp_path / "out", "--model", exact_bundle)
    assert outcome.code == 0, outcome.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert "skipped c.heic: such files are not read; convert them to PNG" in outcome.stderr.splitlines()


def interrupted(words, folder, when):
    """What `odm-deploy upscale` tells of Ctrl-C at the moment that `when` is true."""
    running = subprocess.Popen(
        [sys.executable, "-m", "odm_deploy", "upscale", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        # Shells let what they start in the background ignore Ctrl-C, and the tests may run there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not when() and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    talk = running.communicate(timeout=120)[1]
    assert running.returncode == 130, talk
    return talk.splitlines()[-1]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_interrupted_goes_on_as_it_says(exact_bundle, tmp_path, overwrite):
    (tmp_path / "in").mkdir()
    for index in range(12):
        write_image(tmp_path / "in" / f"{index:02}.png", rgb(400, 400, seed=index))
    words = ["in", "out", "--model", exact_bundle, "--threads", 1]
    more = ["--overwrite"] if overwrite else []
    line = interrupted([*words, *more], tmp_path, lambda: len(list(tmp_path.glob("out/[0-9]*"))) > 2)
    done = len(list(tmp_path.glob("out/[0-9]*")))
    other = "the same command without --overwrite" if overwrite else "the same command"
    assert line == f"interrupted: {done} of 12 images done; {other} does the others"
    assert 2 < done < 12
    assert len(list(tmp_path.glob("out/.*"))) == 0
    outcome = run_cli("upscale", tmp_path / "in", tmp_path / "out", *words[2:])
    assert f"{done} of 12 images" in outcome.stderr
    assert f"wrote {12 - done} image" in outcome.stderr
    line = interrupted([*words[:1], "other", *words[2:]], tmp_path, lambda: (tmp_path / "other").exists())
    assert re.match(r"interrupted: \d+ of 12 images done", line)


def test_an_image_that_was_just_written_counts_as_done(exact_bundle, tmp_path, monkeypatch):
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
        for index in range(3):
            write_image(tmp_path / folder / f"{index}.png", rgb(16, 16, seed=index))

    def interrupted_behind(path, image):
        write_image(path, image)
        raise KeyboardInterrupt

    monkeypatch.setattr("odm_deploy.upscaling.batch.write_image", interrupted_behind)
    jobs = plan_jobs(tmp_path / "in", tmp_path / "out", ".png")
    with Engine.open(exact_bundle) as engine, pytest.raises(KeyboardInterrupt, match=r"^1 of 3 images done"):
        upscale_files("in", tmp_path / "out", (jobs, 0), engine, as_json=False, any_depth=True, overwrite=True)


def test_a_video_that_is_interrupted_says_what_is_there(exact_bundle, tmp_path):
    write_clip(tmp_path / "in.mp4", seconds=20, width=320, height=240)
    words = ["in.mp4", "out.mp4", "--model", exact_bundle, "--threads", 1]
    line = interrupted(words, tmp_path, lambda: len(list(tmp_path.glob(".out*"))) > 0)
    assert line == "interrupted: out.mp4 is not written; the same command begins anew"
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
    (tmp_path / "out.mp4").write_text("older")
    line = interrupted(words, tmp_path, lambda: len(list(tmp_path.glob(".out*"))) > 0)
    assert line == "interrupted: out.mp4 stays as it was; the same command begins anew"
    assert (tmp_path / "out.mp4").read_text() == "older"
