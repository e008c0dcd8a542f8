"""Quality against latency and size: which of several trained models are worth having.

    python tools/pareto.py runs/w4a4 runs/w2a2 --runtime openvino --size 320x180 -o pareto.png

Takes folders that `compare_methods.py` wrote. Every exportable model is lowered and timed here, interleaved with all
others and with the float network, so that the latencies of one picture come from one run. Quality is what was measured
there. Beside the picture lies a table of the same name (.md): rows in bold are on the front, that is, no other model
is at once better and faster. Latencies that stay unsteady when measured again are marked and are on no front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from toolbox import COMMAND, import_pyplot, markdown_table, read_json, save_figure

from odm_deploy.bench.steadiness import Timing, deciding_ms, time_steadily
from odm_deploy.bench.timing import Effort, Percentiles
from odm_deploy.checkpoint import load_model
from odm_deploy.errors import InputError
from odm_deploy.files import write_text
from odm_deploy.lowering.float_twin import float_twin
from odm_deploy.lowering.lower import lower
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import runtime_class
from odm_deploy.terminal import SIZE, progress, run, say


@dataclass(frozen=True)
class Point:
    """One model."""

    name: str
    """Of its recipe; `float` for the network all start from."""
    psnr_y_db: float
    """Mean PSNR of luma on the first test set of the comparison."""
    storage_mb: float
    """Weights, scales and everything else of the network, in 10^6 bytes."""
    latency_ms: float
    """Median of one run on an image of the chosen size."""
    steady: bool = True
    """Whether that median tells anything."""


@click.command(context_settings=COMMAND)
@click.argument("comparisons", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--runtime", default="openvino", show_default=True, help="Where to time: openvino, onnxruntime, ...")
@click.option("--size", type=SIZE, metavar="WxH", default="320x180", show_default=True, help="Input image in pixels.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: one a physical core.")
@click.option("--seconds", default=20.0, show_default=True, help="Time to spend measuring, over all models.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Picture (png, svg, pdf).")
def command(
    comparisons: tuple[Path, ...],
    runtime: str,
    size: tuple[int, int],
    threads: int | None,
    seconds: float,
    output: Path,
) -> None:
    """Draw the models of COMPARISONS by quality, latency and size."""
    width, height = size
    quality = {name: value for folder in comparisons for name, value in read_results(folder).items()}
    graphs = exportable_graphs(comparisons)
    timed = timings(graphs, runtime, (height, width), RuntimeOptions(threads=threads), seconds)
    points = [
        Point(name, *quality[name], Percentiles.of(deciding_ms(timing.runs)).p50, timing.steady)
        for name, timing in timed.items()
    ]
    place = f"{runtime}, {width}x{height} input"
    draw(points, place, output)
    write_text(output.with_suffix(".md"), markdown(points, place))
    say(f"wrote {output} and {output.with_suffix('.md')}")


def read_results(folder: Path) -> dict[str, tuple[float, float]]:
    """PSNR-Y in dB and storage in MB of every row of a comparison; the float start is called `float`.

    Raises:
        InputError: there is no comparison in `folder`.
    """
    path = folder / "results.json"
    try:
        rows = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path}", why=str(error), fix="name a folder that compare_methods.py wrote"
        ) from None
    return {
        row["recipe"] if row["iterations"] else "float": (next(iter(row["psnr_y_db"].values())), row["storage_mb"])
        for row in rows
    }


def exportable_graphs(comparisons: Sequence[Path]) -> dict[str, onnx.ModelProto]:
    """QDQ graphs of all models by recipe, and the float twin of the first as `float`.

    Raises:
        InputError: there is no model.pt, or two recipes have the same name.
    """
    graphs: dict[str, onnx.ModelProto] = {}
    for path in (path for folder in comparisons for path in sorted(folder.glob("*/model.pt"))):
        if path.parent.name in graphs:
            raise InputError(f"two models are called {path.parent.name}", why="names have to differ between folders")
        say(f"lowering {path}")
        graphs[path.parent.name] = lower(load_model(path))
    if not graphs:
        raise InputError("nothing to compare", why="no method in these folders ended in a model.pt")
    return {"float": float_twin(next(iter(graphs.values()))), **graphs}


def timings(
    graphs: Mapping[str, onnx.ModelProto], runtime: str, size: tuple[int, int], options: RuntimeOptions, seconds: float
) -> dict[str, Timing]:
    """Runs of each graph on one image, interleaved, beside those of the first."""
    images = np.random.default_rng(0).integers(0, 256, (1, 3, *size)).astype(np.float32)
    chosen = runtime_class(runtime)
    with ExitStack() as stack:
        opened = [
            stack.enter_context(chosen.open_bytes(graph.SerializeToString(), options, label=name))
            for name, graph in graphs.items()
        ]
        track = stack.enter_context(progress("timing"))
        found = time_steadily(opened, {opened[0].inputs[0].name: images}, Effort(seconds=seconds), track, say)
    return dict(zip(graphs, found, strict=True))


def front(points: Sequence[Point]) -> list[Point]:
    """The steady points than which no other is at once better and faster, fastest first."""
    best: list[Point] = []
    steady = [point for point in points if point.steady]
    for point in sorted(steady, key=lambda point: (point.latency_ms, -point.psnr_y_db)):
        if not best or point.psnr_y_db > best[-1].psnr_y_db:
            best.append(point)
    return best


def markdown(points: Sequence[Point], place: str) -> str:
    """A table, fastest first."""
    names = {point.name for point in front(points)}
    rows = [
        (
            f"**{point.name}**" if point.name in names else point.name,
            f"{point.psnr_y_db:.3f} dB",
            f"{point.latency_ms:.1f} ms{'' if point.steady else ' (unsteady)'}",
            f"{point.storage_mb:.2f} MB",
        )
        for point in sorted(points, key=lambda point: point.latency_ms)
    ]
    return markdown_table(["model", "PSNR-Y", f"latency ({place})", "storage"], rows)


def draw(points: Sequence[Point], place: str, output: Path) -> None:
    """PSNR against latency, circles as large as the model, and the front as a line.

    Raises:
        MissingError: matplotlib is not installed.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    best = front(points)
    axes.step([p.latency_ms for p in best], [p.psnr_y_db for p in best], where="post", color="0.7", zorder=1)
    for point in points:
        label = f"{point.name} ({point.storage_mb:.2g} MB{'' if point.steady else ', unsteady'})"
        axes.scatter(point.latency_ms, point.psnr_y_db, 60 * point.storage_mb, label=label, alpha=0.8)
    # Below the plot: within it, it would hide a model sooner or later.
    legend = figure.legend(fontsize=7, loc="outside lower center", ncols=min(3, len(points)))
    handles: Any = legend.legend_handles  # markers of one size, whatever those in the plot have
    for handle in handles:
        handle.set_sizes([30])
    axes.set_xlabel(f"latency (ms), {place}")
    axes.set_ylabel("PSNR-Y (dB)")
    axes.margins(0.2)
    save_figure(figure, output)


if __name__ == "__main__":
    run(command, "pareto")
