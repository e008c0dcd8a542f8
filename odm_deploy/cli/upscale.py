"""`odm-deploy upscale IN OUT --model BUNDLE`: an image, many images, a video, or frames from a pipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odm_deploy.cli.options import keep_input, open_engine, running_options
from odm_deploy.errors import UsageError
from odm_deploy.terminal import SIZE, json_option


@click.command("upscale", context_settings={"allow_extra_args": True})
@click.argument("source", metavar="IN", type=click.Path())
@click.argument("destination", metavar="OUT", type=click.Path(path_type=Path))
@running_options
@click.option(
    "--format",
    "suffix",
    type=click.Choice(["png", "jpg", "webp"]),
    default="png",
    show_default=True,
    help="Format of the results, if IN is many images.",
)
@click.option(
    "--depth",
    type=click.Choice(["auto", "8", "16"]),
    default="auto",
    show_default=True,
    help="Bits of a sample in the results; auto: 16 where the image, OUT and the bundle have them.",
)
@click.option("--overwrite", is_flag=True, help="Do images again that are done already.")
@click.option("--size", type=SIZE, metavar="WxH", help="Size of raw frames, if IN and OUT are - and no y4m comes.")
@click.option(
    "--pix-fmt",
    type=click.Choice(["rgb24", "bgr24"]),
    default="rgb24",
    show_default=True,
    help="Format of raw frames, in and out.",
)
@click.option("--crf", type=click.IntRange(0, 51), help="Of video: 0 best, 51 worst.  [default: looks lossless]")
@json_option
def command(
    source: str,
    destination: Path,
    suffix: str,
    depth: str,
    overwrite: bool,
    size: tuple[int, int] | None,
    pix_fmt: str,
    as_json: bool,
    crf: int | None,
    **running: Any,
) -> int:
    """Upscale the image IN to OUT (.png, .jpg or .webp), or the images of a folder or 'quoted/*.pattern' into OUT.

    A video becomes a video (.mp4, .mkv, .mov or .webm) with its sound, languages and chapters. Of one that was cut off,
    what is there is upscaled, and frames that cannot be decoded are left out, with exit code 1. With - for both, frames
    come from stdin and go to stdout: y4m (ffmpeg -f yuv4mpegpipe -pix_fmt yuv444p), or raw ones of --size.

    Many images may be interrupted and resumed: results that are newer than their image and the model are skipped. An
    image that cannot be read or written costs a line and exit code 1, and the others are still done.

    Tiles overlap by the network's receptive field, so no seams appear. Where a network sees the whole image at once,
    tiles fade into each other, which comes near to it.
    """
    from odm_deploy.cli.upscale_frames import PIPE, check_pipe, upscale_pipe, upscale_video_file
    from odm_deploy.cli.upscale_images import plan_files, upscale_file, upscale_files
    from odm_deploy.files import check_file
    from odm_deploy.imaging.writing import check_writable, most_bits
    from odm_deploy.upscaling.batch import is_many
    from odm_deploy.upscaling.kinds import check_kinds
    from odm_deploy.upscaling.video import check_video, is_video

    if more := click.get_current_context().args:
        why = f"{len(more) + 2} names were given: a shell makes many of a pattern without quotes"
        raise UsageError("one IN and one OUT are wanted", why=why, fix="quote it, 'photos/*.png', or name the folder")
    check_pipe(source, destination, size, as_json)
    check_kinds(source, destination)
    keep_input(source, destination)
    piped = source == PIPE
    if piped or is_video(destination):
        _refuse("--depth", "of images", depth != "auto", destination)
        if not piped:
            check_video(source, destination)
        with open_engine(**running) as engine:
            if not piped:
                return upscale_video_file(Path(source), destination, engine, crf, as_json)
            upscale_pipe(engine, size, pix_fmt)
        return 0
    _refuse("--crf", "the quality of videos", crf is not None, destination)
    many = is_many(source)
    example = destination / f"image.{suffix}" if many else destination
    check_writable(example, 16 if depth == "16" else 8)
    check_file(example)
    plan = plan_files(source, destination, running["bundle"], example.suffix, overwrite) if many else ([], 0)
    bits = 16 if depth == "16" else 8 if depth == "8" or most_bits(example) == 8 else None
    with open_engine(**running, bits=bits) as engine:
        if many:
            upscale_files(source, destination, plan, engine, as_json, any_depth=depth == "auto", overwrite=overwrite)
        else:
            upscale_file(Path(source), destination, engine, as_json, any_depth=depth == "auto")
    return 0


def _refuse(option: str, purpose: str, given: bool, destination: Path) -> None:
    if given:
        raise UsageError(f"{option} is {purpose}", why=f"OUT is {destination}", fix="leave it out")
