"""The ODM v2 paper's figures, from the logs that runs of `paper.py` leave and from the float network they start from.

Its text was not available; these are the quantities that its captions and Sec. 3 speak of:

- figure1: how a layer's input differs between images and between channels: what one static range has to hold.
- figure2: gradients of mismatch and reconstruction in conflict, as a share of parameters, and their mean cosine.
- figure3: how far weight ranges reach, relative to the largest weight, by how they are chosen.
- figure5: what quantization changes in each layer's input at the end of training, with and without the mismatch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from plot_training import running_mean, series
from toolbox import import_pyplot, legend_below, read_log, save_figure
from torch import Tensor, nn

from training.data import to_network
from training.loop.preparation import load_float_network, load_images
from training.recipe import Recipe

_IMAGES = 8
Logs = Mapping[str, Sequence[Mapping[str, Any]]]


def draw_figures(recipe: Recipe, folders: Mapping[str, Path], out: Path) -> Iterator[Path]:
    """Draw each figure that there are data for.

    Args:
        recipe: whose float network and training images figure 1 looks at.
        folders: of runs, by cell; those without a log are passed over.
        out: where figure1.png and so on go.

    Yields:
        What was written.
    """
    logs = {name: read_log(folder) for name, folder in folders.items() if (folder / "log.jsonl").exists()}
    panels = {
        "figure1": _spread_panels(recipe),
        "figure2": [
            ("share of parameters in conflict", "iteration", _curves(logs, "conflict_scalars")),
            ("cosine of the two gradients", "iteration", _curves(logs, "cosine")),
        ],
        "figure3": [("reach of weight ranges / max |W|", "iteration", _bounds(logs))],
        "figure5": [("quantization error of each layer's input", "layer", _errors(logs))],
    }
    for name, drawn in panels.items():
        if any(curves for _, _, curves in drawn):
            path = out / f"{name}.png"
            _draw(drawn, path)
            yield path


Curves = dict[str, tuple[Sequence[float], Sequence[float]]]


def _draw(panels: Sequence[tuple[str, str, Curves]], path: Path) -> None:
    pyplot = import_pyplot()
    longest = max(len(curves) for _, _, curves in panels)
    size = (4.2 * len(panels), 3.2 + 0.12 * longest)
    figure, grid = pyplot.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axis, (title, along, curves) in zip(grid.flatten(), panels, strict=True):
        for name, (x, y) in curves.items():
            axis.plot(x, y, label=name, linewidth=1.0)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(along)
        legend_below(axis)
    save_figure(figure, path)


def _curves(logs: Logs, key: str) -> Curves:
    found = {name: series(list(map(dict, records)), key) for name, records in logs.items()}
    return {name: (x, running_mean(y)) for name, (x, y) in found.items() if x}


def _bounds(logs: Logs) -> Curves:
    """Mean over layers at each validation."""
    found: Curves = {}
    for name, records in logs.items():
        logged = [record for record in records if record.get("weight_bounds")]
        if logged:
            means = [fmean(record["weight_bounds"].values()) for record in logged]
            found[name] = ([int(record["iteration"]) for record in logged], means)
    return found


def _errors(logs: Logs) -> Curves:
    """By layer, in network order, at the last validation."""
    found: Curves = {}
    for name, records in logs.items():
        logged = [record for record in records if record.get("quantization_errors")]
        if logged:
            errors = list(logged[-1]["quantization_errors"].values())
            found[name] = (range(len(errors)), errors)
    return found


def _spread_panels(recipe: Recipe) -> list[tuple[str, str, Curves]]:
    """First and 99th percentile of each layer's input, over everything and at the extreme image and channel."""
    network, pool = load_float_network(recipe), load_images(recipe).pool
    low, _ = pool.batch(0, _IMAGES)
    layers = recipe.quantization.policy().select(network)
    inputs: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def keep(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs[name] = arguments[0].detach()

        return network.get_submodule(name).register_forward_pre_hook(keep)

    handles = [watch(name) for name in layers]
    with torch.no_grad():
        network(to_network(low, "cpu"))
    for handle in handles:
        handle.remove()
    # Convolutions have channels second, linear layers last.
    by_image = [value.flatten(1) for value in inputs.values()]
    by_channel = [value.transpose(0, 1 if value.dim() == 4 else -1).flatten(1) for value in inputs.values()]
    return [("between images", "layer", _spread(by_image)), ("between channels", "layer", _spread(by_channel))]


def _spread(rows: Sequence[Tensor]) -> Curves:
    places = range(len(rows))
    marks = torch.tensor([0.01, 0.99])
    each = [torch.stack([_quantiles(row, marks) for row in value]) for value in rows]
    whole = [_quantiles(value.flatten(), marks) for value in rows]
    return {
        "widest, upper": (places, [float(q[:, 1].max()) for q in each]),
        "all, upper": (places, [float(q[1]) for q in whole]),
        "narrowest, upper": (places, [float(q[:, 1].min()) for q in each]),
        "narrowest, lower": (places, [float(q[:, 0].max()) for q in each]),
        "all, lower": (places, [float(q[0]) for q in whole]),
        "widest, lower": (places, [float(q[:, 0].min()) for q in each]),
    }


def _quantiles(values: Tensor, marks: Tensor) -> Tensor:
    # torch.quantile takes 16 million values at most.
    return values[:: max(1, len(values) >> 20)].quantile(marks)
