"""Many images in one go: which file becomes which, what is done already, and how each one fared."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from odm_deploy.errors import OdmError, UsageError
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.reading import list_images, read_image
from odm_deploy.imaging.writing import check_writable, write_image
from odm_deploy.pipeline import map_ahead


@dataclass(frozen=True)
class Job:
    """One image file to upscale into another."""

    source: Path
    destination: Path


@dataclass(frozen=True, eq=False)
class Outcome:
    """How a job went."""

    job: Job
    image: Image | None = None
    """The image at this stage of the pipeline: as read, then as upscaled; None where it failed."""
    error: OdmError | None = None
    """Why it failed; None where it did not."""


def is_many(source: Path | str) -> bool:
    """Whether `source` names a folder or a glob pattern rather than one file."""
    return Path(source).is_dir() or (glob.has_magic(str(source)) and not Path(source).is_file())


def plan_jobs(source: Path | str, folder: Path | str, suffix: str) -> list[Job]:
    """The images that `source` names, and the file in `folder` that each becomes.

    A file keeps its name, and its place below the part of the pattern that has no wildcard; its suffix changes. Where
    two files differ in their suffix only, theirs stay in front of the new one: `a.jpg.png` and `a.png.png`.

    Args:
        source: a folder or a glob pattern, see `list_images`.
        folder: where the results go.
        suffix: of the results, such as `.png`.

    Raises:
        InputError: there are no images.
        UsageError: no image format goes by `suffix`, or the results would lie among the images, or replace one.
    """
    root = _fixed_part(source)
    target = Path(folder)
    check_writable(target / f"image{suffix}")
    if target.resolve() == root.resolve():
        why = "the next run would take the results for images to upscale"
        raise UsageError(f"cannot write into {target}, the folder of the images", why=why, fix="name another folder")
    images, results = list_images(source), target.resolve()
    if results.is_relative_to(root.resolve()):
        # A pattern may reach into the folder of the results.
        images = [image for image in images if not image.parent.resolve().is_relative_to(results)]
    stems = Counter(image.with_suffix("") for image in images)
    jobs: list[Job] = []
    for image in images:
        name = image.stem if stems[image.with_suffix("")] == 1 else image.name
        jobs.append(Job(image, target / image.relative_to(root).parent / f"{name}{suffix}"))
    # Not resolved: among a stranger's images are links that lead to themselves.
    places = {image.absolute() for image in images}
    if lost := [job.destination for job in jobs if job.destination.absolute() in places]:
        raise UsageError(f"cannot write {lost[0]}", why="it is one of the images", fix="name another folder")
    return jobs


def is_done(job: Job, newer_than: float = 0.0) -> bool:
    """Whether the result is there already, and made after both its source and `newer_than` (seconds since 1970).

    A result is never half written, so what is there is whole.
    """
    try:
        made = job.destination.stat().st_mtime
        return job.destination.is_file() and made >= max(job.source.stat().st_mtime, newer_than)
    except OSError:
        return False


def run_jobs(jobs: Iterable[Job], upscale: Callable[[Image], Image]) -> Generator[Outcome]:
    """Read, upscale and write every image, the three overlapping; yields how each went, in order.

    A job that fails does not stop the others. Memory holds a handful of images, however many there are.

    Args:
        jobs: what to do.
        upscale: turns an image of 8 or 16 bits a sample into a larger one; called from one thread.
    """

    def read(job: Job) -> Outcome:
        return _attempt(job, lambda: read_image(job.source, max_bits=16))

    def upscaled(outcome: Outcome) -> Outcome:
        image = outcome.image
        return outcome if image is None else _named(outcome.job, _attempt(outcome.job, lambda: upscale(image)))

    with closing(map_ahead(upscaled, map_ahead(read, jobs))) as outcomes:
        for outcome in outcomes:
            if outcome.image is None:
                yield outcome
                continue
            try:
                write_image(outcome.job.destination, outcome.image)
            except OdmError as error:
                yield Outcome(outcome.job, error=error)
            else:
                yield outcome


def _attempt(job: Job, work: Callable[[], Image]) -> Outcome:
    try:
        return Outcome(job, work())
    except MemoryError:
        too_large = OdmError(f"cannot upscale {job.source}", why="out of memory", fix="use a smaller --tile")
        return Outcome(job, error=too_large)
    except OdmError as error:
        return Outcome(job, error=error)


def _named(job: Job, outcome: Outcome) -> Outcome:
    """The outcome, with the image in front of an error that knows its pixels only."""
    error = outcome.error
    if error is None or str(job.source) in str(error):
        return outcome
    because = f"{error.what}: {error.why}" if error.why else error.what
    return Outcome(job, error=OdmError(f"cannot upscale {job.source}", why=because, fix=error.fix))


def _fixed_part(source: Path | str) -> Path:
    """The folder itself, or the folders of a pattern that come before its first wildcard."""
    path = Path(source)
    if path.is_dir():
        return path
    fixed: list[str] = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed) if fixed else Path(os.curdir)
