"""Which file becomes which, what is done already, and that one bad image spoils nothing but itself."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from odm_deploy.errors import InputError, OdmError, UsageError
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.reading import read_rgb
from odm_deploy.imaging.writing import write_image
from odm_deploy.upscaling.batch import Job, is_done, is_many, plan_jobs, run_jobs


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)


def doubled(image: Image) -> Image:
    return Image(image.rgb.repeat(2, 0).repeat(2, 1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate(("b.png", "a.jpg", "deeper/c.webp")):
        write_image(tmp_path / "in" / name, picture(index))
    return tmp_path / "in"


def test_a_folders_images_keep_their_names(folder):
    jobs = plan_jobs(folder, folder.parent / "out", ".png")
    assert [job.destination for job in jobs] == [folder.parent / "out" / name for name in ("a.png", "b.png")]


def test_a_pattern_keeps_what_lies_below_its_fixed_part(folder):
    jobs = plan_jobs(folder / "**" / "*.*", folder / "out", ".webp")
    assert [str(job.destination.relative_to(folder / "out")) for job in jobs] == [
        "a.webp",
        "b.webp",
        str(Path("deeper/c.webp")),
    ]
    write_image(folder / "out/a.webp", picture())
    assert plan_jobs(folder / "**" / "*.*", folder / "out", ".webp") == jobs


def test_results_may_go_above_their_images_but_not_over_one(folder):
    jobs = plan_jobs(folder / "deeper", folder, ".png")
    assert jobs == [Job(folder / "deeper/c.webp", folder / "c.png")]
    write_image(folder / "deeper/deeper/c.webp", picture())
    with pytest.raises(UsageError, match=r"deeper/c\.webp: it is one of the images; name another folder"):
        plan_jobs(folder / "deeper" / "**" / "*.*", folder, ".webp")


def test_files_that_differ_in_their_suffix_only_do_not_overwrite_each_other(folder):
    write_image(folder / "a.png", picture())
    names = [job.destination.name for job in plan_jobs(folder, folder.parent / "out", ".png")]
    assert names == ["a.jpg.png", "a.png.png", "b.png"]


def test_results_never_lie_among_the_images(folder):
    with pytest.raises(UsageError, match="folder of the images"):
        plan_jobs(folder, folder / ".", ".png")
    with pytest.raises(UsageError, match="suffix"):
        plan_jobs(folder, folder.parent / "out", ".xyz")
    with pytest.raises(InputError):
        plan_jobs(folder / "*.none", folder.parent / "out", ".png")


def test_many_is_a_folder_or_a_pattern_but_no_file(folder):
    strange = folder / "shot [1].png"
    write_image(strange, picture())
    assert is_many(folder)
    assert is_many(f"{folder}/*.png")
    assert not is_many(strange)
    assert not is_many(folder / "a.jpg")


def test_done_is_newer_than_source_and_model(folder):
    job = Job(folder / "b.png", folder / "result.png")
    assert not is_done(job)
    write_image(job.destination, picture())
    os.utime(job.source, (100, 100))
    os.utime(job.destination, (200, 200))
    assert is_done(job)
    assert is_done(job, newer_than=150)
    assert not is_done(job, newer_than=250)
    os.utime(job.source, (300, 300))
    assert not is_done(job)


def test_a_bad_image_costs_itself_only(folder):
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:60])
    write_image(folder / "z.png", picture(7))
    outcomes = list(run_jobs(plan_jobs(folder, folder.parent / "out", ".png"), doubled))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert "b.png" in str(outcomes[1].error)
    np.testing.assert_array_equal(read_rgb(folder.parent / "out/z.png"), doubled(Image(picture(7))).rgb)
    assert not (folder.parent / "out/b.png").exists()


def test_what_the_network_or_the_disk_refuses_is_named(folder):
    def refuse(image: Image) -> Image:
        if (image.rgb == picture(0)).all():
            raise MemoryError
        raise InputError("not built for this size")

    jobs = plan_jobs(folder, folder.parent / "out", ".png")
    errors = [str(outcome.error) for outcome in run_jobs(jobs, refuse)]
    assert "not built for this size" in errors[0]
    assert str(jobs[0].source) in errors[0]
    assert "out of memory" in errors[1]
    (folder.parent / "blocked").write_text("a file, not a folder")
    blocked = [Job(job.source, folder.parent / "blocked" / job.destination.name) for job in jobs]
    assert all(isinstance(outcome.error, OdmError) for outcome in run_jobs(blocked, doubled))


def test_an_unforeseen_error_is_not_swallowed(folder):
    def bug(_: Image) -> Image:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(run_jobs(plan_jobs(folder, folder.parent / "out", ".png"), bug))
