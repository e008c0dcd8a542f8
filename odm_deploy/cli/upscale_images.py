"""What `odm-deploy upscale` does with image files: one, or many that may be interrupted and resumed."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odm_deploy.cli.options import say_what_is_not_read
from odm_deploy.errors import OdmError
from odm_deploy.progress import counted
from odm_deploy.terminal import emit_json, progress, say

if TYPE_CHECKING:
    from odm_deploy.engine import Engine
    from odm_deploy.imaging.image import Image
    from odm_deploy.upscaling.batch import Job, Outcome


def upscale_file(source: Path, destination: Path, engine: Engine, as_json: bool, *, any_depth: bool) -> None:
    """One image file into another; with `any_depth`, says so where 16 bits a sample become 8."""
    from odm_deploy.imaging.reading import read_image

    image = read_image(source, max_bits=16)
    width, height = image.width * engine.scale, image.height * engine.scale
    if engine.tiles is not None and engine.tiles.blend(image.height, image.width):
        tile = engine.tile_size(image.height, image.width)
        say(f"tiles of {tile} pixels fade into each other: how far this network looks has no known bound")
    if any_depth and _narrows(engine, image):
        say(_narrowed(source, engine))
    start = time.perf_counter()
    with progress("tiles") as track:
        engine.upscale_to(destination, image, track=track)
    seconds = time.perf_counter() - start
    described = engine.describe()
    if as_json:
        emit_json(
            {
                "input": str(source),
                "output": str(destination),
                "size": [width, height],
                "bits": engine.result_bits(image),
                "tile": engine.tile_size(image.height, image.width),
                "runtime": described,
                "seconds": seconds,
            }
        )
    else:
        say(f"wrote {destination}: {width}x{height}, {seconds:.2f} s on {described['runtime']}")


def plan_files(source: str, folder: Path, bundle: Path, suffix: str, overwrite: bool) -> tuple[list[Job], int]:
    """What is to be done, and how many images are done already."""
    from odm_deploy.bundle import Bundle
    from odm_deploy.bundle.manifest import MANIFEST_FILE
    from odm_deploy.upscaling.batch import is_done, plan_jobs

    opened = Bundle.open(bundle)
    opened.require_manifest()
    say_what_is_not_read(source)
    assert opened.folder is not None
    jobs = plan_jobs(source, folder, suffix)
    model_made = (opened.folder / MANIFEST_FILE).stat().st_mtime
    todo = [job for job in jobs if overwrite or not is_done(job, model_made)]
    skipped = len(jobs) - len(todo)
    if skipped:
        verb = "is" if skipped == 1 else "are"
        say(f"{skipped} of {counted(len(jobs), 'image')} {verb} done already; --overwrite does them again")
    return todo, skipped


def upscale_files(
    source: str,
    folder: Path,
    plan: tuple[list[Job], int],
    engine: Engine,
    as_json: bool,
    *,
    any_depth: bool,
    overwrite: bool,
) -> None:
    """Many image files into `folder`, as `plan_files` planned them; see `upscale_file`.

    Raises:
        KeyboardInterrupt: after Ctrl-C; with how the work goes on.
        OdmError: some could not be read, upscaled or written; a line each has said why.
    """
    from odm_deploy.upscaling.batch import run_jobs

    todo, skipped = plan
    narrowed = 0

    def upscale(image: Image) -> Image:
        nonlocal narrowed
        narrowed += _narrows(engine, image)
        return engine.upscale(image)

    start = time.perf_counter()
    before = [_stamp(job.destination) for job in todo]
    outcomes: list[dict[str, Any]] = []
    try:
        with progress("images", "images/s") as track, closing(run_jobs(todo, upscale)) as run:
            for outcome in track(run, len(todo)):
                outcomes.append(_document(outcome))
                if outcome.error is not None:
                    say(f"error: {outcome.error}")
    except KeyboardInterrupt:
        # Ctrl-C may have come when an image was written and nobody had counted it.
        written = (_stamp(job.destination) != stamp for job, stamp in zip(todo, before, strict=True))
        done = skipped + sum(written)
        same = "the same command without --overwrite" if overwrite else "the same command"
        told = f"{done} of {counted(skipped + len(todo), 'image')} done; {same} does the others"
        raise KeyboardInterrupt(told) from None
    described = engine.describe()
    seconds = time.perf_counter() - start
    failed = sum("error" in outcome for outcome in outcomes)
    if any_depth and narrowed:
        say(_narrowed(f"{narrowed} of {counted(len(todo), 'image')}", engine))
    if as_json:
        emit_json(
            {
                "input": source,
                "output": str(folder),
                "images": outcomes,
                "skipped": skipped,
                "failed": failed,
                "runtime": described,
                "seconds": seconds,
            }
        )
    elif len(todo) > failed:
        say(f"wrote {counted(len(todo) - failed, 'image')} to {folder}, {seconds:.2f} s on {described['runtime']}")
    if failed:
        verb = "was" if failed == 1 else "were"
        raise OdmError(f"{failed} of {counted(len(todo), 'image')} {verb} not upscaled", why="each is named above")


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _narrows(engine: Engine, image: Image) -> bool:
    return image.bits > engine.result_bits(image)


def _narrowed(what: object, engine: Engine) -> str:
    why = "the format of OUT holds no more" if engine.has_float_edges else "the bundle takes and returns uint8"
    return f"{what}: 16 bits a sample become 8, because {why}"


def _document(outcome: Outcome) -> dict[str, Any]:
    """What JSON says about one image; its pixels are let go."""
    if outcome.error is not None or outcome.image is None:
        return {"input": str(outcome.job.source), "error": str(outcome.error)}
    image = outcome.image
    size = [image.width, image.height]
    return {"input": str(outcome.job.source), "output": str(outcome.job.destination), "size": size, "bits": image.bits}
