"""What the two ends of `odm-deploy upscale` are by their names: one image, many images, or a video."""

from __future__ import annotations

from pathlib import Path

from odm_deploy.errors import UsageError
from odm_deploy.imaging.reading import READ_SUFFIXES
from odm_deploy.imaging.writing import WRITTEN_SUFFIXES
from odm_deploy.kinds_of_files import kind_by_name, kind_of
from odm_deploy.upscaling.batch import is_many
from odm_deploy.upscaling.video import VIDEO_SUFFIXES, is_video


def check_kinds(source: str, destination: Path) -> None:
    """Check that both ends are of one kind, before any work.

    Raises:
        UsageError: many images into one file, a video into an image or the other way round, or a video whose format
            is not written.
    """
    if kind_of(source) == "a bundle":
        fix = f"use it with --model {source}"
        raise UsageError(f"cannot upscale {source}", why="it is a bundle, not images", fix=fix)
    written = f"end OUT in {', '.join(VIDEO_SUFFIXES)}"
    if is_many(source):
        if destination.is_dir():
            return
        if is_video(destination):
            why, fix = f"{source} is many images", "upscale them into a folder, and let ffmpeg make a video of that"
            raise UsageError(f"cannot write video {destination}", why=why, fix=fix)
        if destination.is_file() or destination.suffix.lower() in WRITTEN_SUFFIXES:
            why = f"{source} is many images, and this names one file"
            fix = f"name a folder, such as {destination.with_suffix('')}"
            raise UsageError(f"cannot write {destination}", why=why, fix=fix)
        return
    if kind_by_name(source) == "a video" and not is_video(destination):
        why = f"{source} is a video" + (f", and none is written as {destination.suffix}" if destination.suffix else "")
        raise UsageError(f"cannot write {destination}", why=why, fix=written)
    if is_video(destination) and Path(source).suffix.lower() in READ_SUFFIXES and Path(source).suffix.lower() != ".gif":
        why, fix = f"{source} is an image", f"end OUT in {', '.join(WRITTEN_SUFFIXES)}"
        raise UsageError(f"cannot write video {destination}", why=why, fix=fix)
    if kind_by_name(destination) == "a video" and not is_video(destination):
        raise UsageError(f"cannot write {destination}", why=f"no video is written as {destination.suffix}", fix=written)
