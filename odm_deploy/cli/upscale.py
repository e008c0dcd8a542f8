"""`odm-deploy upscale IN OUT --model BUNDLE`: an image, many images, a video, or frames from a pipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odm_deploy.cli.output import emit_json, json_option, progress, say
from odm_deploy.cli.upscale_frames import parse_size

if TYPE_CHECKING:
    from odm_deploy.imaging.batch import Job, Outcome
    from odm_deploy.imaging.upscaler import Upscaler


@click.command("upscale")
@click.argument("source", metavar="IN")
@click.argument("destination", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--model", "bundle", type=click.Path(path_type=Path), required=True, help="A bundle.")
@click.option("--tile", type=click.IntRange(0), help="Tile size in input pixels; 0: whole. [default: by memory]")
@click.option(
    "--format",
    "suffix",
    type=click.Choice(["png", "jpg", "webp"]),
    default="png",
    show_default=True,
    help="Of the results, where IN is many images.",
)
@click.option("--overwrite", is_flag=True, help="Do again what is done already, where IN is many images.")
@click.option("--size", metavar="WxH", callback=parse_size, help="Of the raw frames on stdin, where IN and OUT are -.")
@click.option(
    "--pix-fmt",
    type=click.Choice(["rgb24", "bgr24"]),
    default="rgb24",
    show_default=True,
    help="Of raw frames, in and out.",
)
@click.option("--crf", type=click.IntRange(0, 51), help="Of video: 0 best, 51 worst. [default: looks lossless]")
@click.option("--runtime", help="Run on this runtime. [default: the fastest that works]")
@click.option("--threads", type=int, help="CPU threads. [default: one a physical core]")
@json_option
def command(
    source: str,
    destination: Path,
    bundle: Path,
    suffix: str,
    overwrite: bool,
    size: tuple[int, int] | None,
    pix_fmt: str,
    as_json: bool,
    tile: int | None,
    runtime: str | None,
    threads: int | None,
    crf: int | None,
) -> None:
    """Upscale the image IN to OUT (.png, .jpg or .webp), or the images of a folder or 'quoted/*.pattern' into OUT.

    A video becomes a video (.mp4, .mkv, .mov or .webm) with its sound. With - for both, raw frames of --size come from
    stdin and go to stdout.

    Many images may be interrupted and resumed: results that are newer than their image and the model are skipped. An
    image that cannot be read or written costs a line and exit code 1, and the others are still done.

    Tiles overlap by the network's receptive field, so that the seams are those of the whole image: none. Where a
    network sees the whole image at once, tiles fade into each other, which comes near to it.
    """
    from functools import partial

    from odm_deploy.cli.upscale_frames import check_pipe, upscale_pipe, upscale_video_file
    from odm_deploy.errors import UsageError
    from odm_deploy.imaging.batch import is_many
    from odm_deploy.imaging.io import check_writable
    from odm_deploy.imaging.upscaler import Upscaler
    from odm_deploy.imaging.video import check_video, is_video

    open_upscaler = partial(Upscaler.open, bundle, runtime, tile=tile, threads=threads)
    if check_pipe(source, destination, size, as_json):
        with open_upscaler() as upscaler:
            _say_passed_over(upscaler)
            assert size is not None
            upscale_pipe(upscaler, size, pix_fmt)
        return
    if crf is not None and not is_video(destination):
        why = f"OUT is {destination}"
        raise UsageError("--crf is the quality of videos", why=why, fix="leave it out, or name a video file")
    if is_video(destination):
        check_video(source, destination)
        with open_upscaler() as upscaler:
            _say_passed_over(upscaler)
            upscale_video_file(Path(source), destination, upscaler, crf, as_json)
        return
    if is_many(source):
        todo, skipped = _plan(source, destination, bundle, f".{suffix}", overwrite)
        with open_upscaler() as upscaler:
            _say_passed_over(upscaler)
            _many(source, destination, todo, skipped, upscaler, as_json)
        return
    check_writable(destination)
    with open_upscaler() as upscaler:
        _say_passed_over(upscaler)
        _one(Path(source), destination, upscaler, as_json)


def _one(source: Path, destination: Path, upscaler: Upscaler, as_json: bool) -> None:
    import time

    from odm_deploy.imaging.io import read_image

    image = read_image(source)
    width, height = image.width * upscaler.scale, image.height * upscaler.scale
    if upscaler.blends(image.height, image.width):
        tile = upscaler.tile_size(image.height, image.width)
        say(f"tiles of {tile} pixels fade into each other: this network sees the whole image at once")
    start = time.perf_counter()
    with progress("tiles") as track:
        upscaler.upscale_to(destination, image, track)
    seconds = time.perf_counter() - start
    described = upscaler.describe()
    if as_json:
        emit_json(
            {
                "input": str(source),
                "output": str(destination),
                "size": [width, height],
                "tile": upscaler.tile_size(image.height, image.width),
                "runtime": described,
                "seconds": seconds,
            }
        )
    else:
        say(f"wrote {destination}: {width}x{height}, {seconds:.2f} s on {described['runtime']}")


def _plan(source: str, folder: Path, bundle: Path, suffix: str, overwrite: bool) -> tuple[list[Job], int]:
    """What is to be done, and how many images are done already."""
    from odm_deploy.imaging.batch import is_done, plan_jobs
    from odm_deploy.manifest import MANIFEST_FILE, read_manifest

    read_manifest(bundle)
    jobs = plan_jobs(source, folder, suffix)
    model_made = (bundle / MANIFEST_FILE).stat().st_mtime
    todo = [job for job in jobs if overwrite or not is_done(job, model_made)]
    skipped = len(jobs) - len(todo)
    if skipped:
        say(f"{skipped} of {len(jobs)} images are done already; --overwrite does them again")
    return todo, skipped


def _many(source: str, destination: Path, todo: list[Job], skipped: int, upscaler: Upscaler, as_json: bool) -> None:
    import time

    from odm_deploy.errors import OdmError
    from odm_deploy.imaging.batch import run_jobs

    start = time.perf_counter()
    outcomes: list[dict[str, Any]] = []
    with progress("images") as track:
        for outcome in track(run_jobs(todo, upscaler.upscale), len(todo)):
            outcomes.append(_document(outcome))
            if outcome.error is not None:
                say(f"error: {outcome.error}")
    described = upscaler.describe()
    seconds = time.perf_counter() - start
    failed = sum("error" in outcome for outcome in outcomes)
    if as_json:
        emit_json(
            {
                "input": source,
                "output": str(destination),
                "images": outcomes,
                "skipped": skipped,
                "failed": failed,
                "runtime": described,
                "seconds": seconds,
            }
        )
    elif len(todo) > failed:
        say(f"wrote {len(todo) - failed} images to {destination}, {seconds:.2f} s on {described['runtime']}")
    if failed:
        raise OdmError(f"{failed} of {len(todo)} images were not upscaled", why="each is named above")


def _document(outcome: Outcome) -> dict[str, Any]:
    """What JSON says about one image; its pixels are let go."""
    if outcome.error is not None or outcome.image is None:
        return {"input": str(outcome.job.source), "error": str(outcome.error)}
    size = [outcome.image.width, outcome.image.height]
    return {"input": str(outcome.job.source), "output": str(outcome.job.destination), "size": size}


def _say_passed_over(upscaler: Upscaler) -> None:
    for reason in upscaler.engine.runtime.passed_over:
        say(f"passed over: {reason}")
