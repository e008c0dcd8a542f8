"""How much of the bare network's speed is left when images or videos are read, upscaled and written.

    python tools/upscale_throughput.py bundle photos --size 320x180 --format png
    python tools/upscale_throughput.py bundle photos --size 320x180 --format mp4

Three ways to do the same images, in alternation, on one opened model; of a video they are the frames:

- network: the network alone, on arrays that are in memory already;
- upscale: what `odm-deploy upscale` does with a folder or a clip from the opened model on: reading, upscaling and
  writing overlap;
- loop: what most tools do: read an image with Pillow (a frame with PyAV), bring it to float, run the network, round,
  write it, then the next one.

Beside the time that passes stands the processor time, which other programs on the machine disturb less. On a CPU the
network keeps all cores busy, so that reading and writing cost their processor time even where they overlap; on a GPU
they cost nothing as long as they are faster than the network.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from toolbox import COMMAND, markdown_table

from odm_deploy.engine import Engine
from odm_deploy.imaging.pixels import to_batch
from odm_deploy.imaging.reading import list_images, read_rgb
from odm_deploy.imaging.writing import write_image
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.terminal import SIZE, emit_json, json_option, progress, run, say
from odm_deploy.upscaling.batch import plan_jobs, run_jobs
from odm_deploy.upscaling.video import is_video, upscale_video

WAYS = ("network", "upscale", "loop")
PAN_PX = 2


@dataclass(frozen=True)
class Cost:
    """What one way took in one round, for all images."""

    wall_s: float
    processor_s: float


@click.command(context_settings=COMMAND)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("photos")
@click.option(
    "--size", type=SIZE, metavar="WxH", default="320x180", show_default=True, help="Inputs are cut to this, in pixels."
)
@click.option("--count", default=6, show_default=True, type=click.IntRange(min=1), help="Images or frames a round.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Each way once a round.")
@click.option(
    "--format", "suffix", default="png", show_default=True, type=click.Choice(["png", "jpg", "webp", "mp4", "mkv"])
)
@click.option("--runtime", help="Run on this runtime. [default: the fastest that works]")
@click.option("--threads", type=int, help="CPU threads. [default: one a physical core]")
@json_option
def command(
    bundle: Path,
    photos: str,
    size: tuple[int, int],
    count: int,
    rounds: int,
    suffix: str,
    runtime: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare the whole of `odm-deploy upscale` to the network alone, on pieces of the images PHOTOS."""
    width, height = size
    with (
        tempfile.TemporaryDirectory() as scratch,
        Engine.open(bundle, runtime, RuntimeOptions(threads=threads), tile=0) as engine,
        progress("rounds") as track,
    ):
        inputs = cut_inputs(photos, Path(scratch) / "in", (height, width), count)
        ways = ways_of(engine, inputs, Path(scratch), f".{suffix}")
        costs = measure(ways, track(range(rounds), rounds))
        described = engine.describe()
    if as_json:
        results = {way: [vars(cost) for cost in costs[way]] for way in WAYS}
        emit_json(
            {"runtime": described, "size": f"{width}x{height}", "format": suffix, "count": count, "costs": results}
        )
        return
    say(f"{count} images of {size} a round, {rounds} rounds, results as {suffix}; {described['device']}")
    click.echo(table(costs, count))


def cut_inputs(photos: str, folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """`count` PNG files of one size, cut from (mirrored repetitions of) the images in turn; one photo makes a pan."""
    paths: list[Path] = []
    sources = list_images(photos)
    for index in range(count):
        pixels, moved = read_rgb(sources[index % len(sources)]), PAN_PX * (index // len(sources))
        for axis, length in enumerate(size):
            while pixels.shape[axis] < length + moved:
                pixels = np.concatenate([pixels, np.flip(pixels, axis)], axis)
        paths.append(folder / f"{index:03}.png")
        write_image(paths[-1], np.ascontiguousarray(pixels[moved : moved + size[0], moved : moved + size[1]]))
    return paths


def ways_of(engine: Engine, inputs: Sequence[Path], scratch: Path, suffix: str) -> dict[str, Callable[[], None]]:
    """What does all images once, each way."""
    source, _ = engine.runtime.single_image_edges()
    feeds = [{source.name: source.images.from_rgb(to_batch(read_rgb(path)))} for path in inputs]

    def network() -> None:
        for feed in feeds:
            engine.runtime.run(feed)

    def upscale() -> None:
        for outcome in run_jobs(plan_jobs(inputs[0].parent, scratch / "out", suffix), engine.upscale):
            if outcome.error is not None:
                raise outcome.error

    def loop() -> None:
        (scratch / "loop").mkdir(exist_ok=True)
        for path in inputs:
            PillowImage.fromarray(_plainly_upscaled(engine, _read_as_float(path))).save(
                scratch / "loop" / f"{path.stem}{suffix}", quality=95
            )

    def upscale_clip() -> None:
        upscale_video(clip, scratch / f"out{suffix}", partial(engine.upscale, bits=8), engine.scale)

    def loop_clip() -> None:
        with av.open(str(clip)) as frames:
            pictures = (frame.to_ndarray(format="rgb24") for frame in frames.decode(video=0))
            _encode(
                scratch / f"loop{suffix}",
                (
                    _plainly_upscaled(engine, picture.astype(np.float32).transpose(2, 0, 1)[None])
                    for picture in pictures
                ),
            )

    engine.runtime.run(feeds[0])
    if not is_video(f"clip{suffix}"):
        return {"network": network, "upscale": upscale, "loop": loop}
    clip = scratch / "clip.mkv"
    _encode(clip, (read_rgb(path) for path in inputs))
    return {"network": network, "upscale": upscale_clip, "loop": loop_clip}


def measure(ways: Mapping[str, Callable[[], None]], rounds: Iterable[int]) -> dict[str, list[Cost]]:
    """What each way costs in each round."""
    costs: dict[str, list[Cost]] = {way: [] for way in ways}
    for _ in rounds:
        for way, work in ways.items():
            costs[way].append(_timed(work))
    return costs


def table(costs: dict[str, list[Cost]], count: int) -> str:
    """Medians an image, and how fast each way is in parts of the network's speed, compared round by round."""
    head = ["", "time an image", "of the network's speed", "processor time an image", "of the network's"]
    rows: list[list[str]] = []
    for way, all_costs in costs.items():
        cells = [way]
        for values, network in (
            ([cost.wall_s for cost in all_costs], [cost.wall_s for cost in costs["network"]]),
            ([cost.processor_s for cost in all_costs], [cost.processor_s for cost in costs["network"]]),
        ):
            share = statistics.median(base / value for base, value in zip(network, values, strict=True))
            cells += [f"{1e3 * statistics.median(values) / count:.0f} ms", f"{100 * share:.0f} %"]
        rows.append(cells)
    return markdown_table(head, rows)


def _timed(work: Callable[[], None]) -> Cost:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - processor)


def _plainly_upscaled(engine: Engine, batch: NDArray[np.float32]) -> NDArray[np.uint8]:
    result = engine.runtime.upscale(batch)
    pixels = np.round(np.clip(result[0], 0, 255)).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(pixels)


def _encode(path: Path, pictures: Iterable[NDArray[np.uint8]]) -> None:
    """Write pictures, uint8 [H, W, 3] of one size, as H.264 of the quality that `upscale` writes."""
    with av.open(str(path), "w") as writer:
        video = writer.add_stream("libx264", rate=25, options={"preset": "medium", "crf": "16"})
        video.pix_fmt = "yuv420p"
        for picture in pictures:
            if not video.codec_context.is_open:
                video.height, video.width = picture.shape[:2]
            writer.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")))
        writer.mux(video.encode(None))


def _read_as_float(path: Path) -> NDArray[np.float32]:
    with PillowImage.open(path) as opened:
        return np.asarray(opened.convert("RGB"), np.float32).transpose(2, 0, 1)[None]


if __name__ == "__main__":
    run(command, "upscale_throughput")
