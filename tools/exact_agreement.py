"""How many bytes differ between everything that can run an exact model, and integers alone.

`python tools/exact_agreement.py model.pt --images Set5/LR_bicubic/X4` exports the model, upscales every image and a
thousand small stress images on torch (float32 with one thread and two, float64), ONNX Runtime (optimized and not, one
thread and all) and OpenVINO (with and without its bf16 hint, one thread and all), the images also in tiles, and prints
a line for each: bytes compared, bytes that differ. Before them it says how many rounding ties and saturated codes these
images reach. Ends with 1 if any byte differs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from toolbox import COMMAND

from odm_deploy.bundle import Bundle
from odm_deploy.checkpoint import load_model
from odm_deploy.engine import Engine
from odm_deploy.export import write_bundle
from odm_deploy.imaging.pixels import round_to_uint8, to_batch
from odm_deploy.imaging.reading import list_images, read_rgb
from odm_deploy.imaging.tiling import plan_tiles
from odm_deploy.lowering.lower import LoweringOptions
from odm_deploy.proof.reference import TorchReference
from odm_deploy.proof.stress_images import stress_images
from odm_deploy.quantization.exact.census import RoundingCensus
from odm_deploy.quantization.exact.interpreter import interpret
from odm_deploy.quantization.exact.trace import integer_program
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import open_runtime
from odm_deploy.terminal import run, say

Pixels = NDArray[np.uint8]
Upscale = Callable[[Pixels], Pixels]
"""uint8 [N, 3, H, W] -> uint8 [N, 3, scale*H, scale*W]."""

TORCH = (
    ("torch float32, 1 thread", "float32", 1),
    ("torch float32, 2 threads", "float32", 2),
    ("torch float64", "float64", 2),
)
"""Name, precision, threads."""

RUNTIMES: dict[str, tuple[str, RuntimeOptions]] = {
    "ONNX Runtime": ("onnxruntime", RuntimeOptions()),
    "ONNX Runtime, 1 thread": ("onnxruntime", RuntimeOptions(threads=1)),
    "ONNX Runtime, 2 threads": ("onnxruntime", RuntimeOptions(threads=2)),
    "ONNX Runtime, unoptimized": ("onnxruntime", RuntimeOptions(optimize=False)),
    "OpenVINO": ("openvino", RuntimeOptions()),
    "OpenVINO, 1 thread": ("openvino", RuntimeOptions(threads=1)),
    "OpenVINO, 2 threads": ("openvino", RuntimeOptions(threads=2)),
    "OpenVINO, bf16 hint": ("openvino", RuntimeOptions(precision="bf16")),
}


@click.command(context_settings=COMMAND)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--images", "folders", multiple=True, type=click.Path(path_type=Path), help="Input images; repeatable.")
@click.option("--stress", default=1000, show_default=True, help="How many stress images.")
@click.option("--side", default=12, show_default=True, help="Of a stress image, in pixels.")
@click.option("--tile", default=96, show_default=True, help="Side of the tiles, in pixels; 0 for none.")
def command(model: Path, folders: tuple[Path, ...], stress: int, side: int, tile: int) -> None:
    """Compare everything that can run MODEL with integers alone."""
    quantized = load_model(model)
    program = integer_program(quantized)
    photos = [to_batch(read_rgb(path)).astype(np.uint8) for folder in folders for path in list_images(folder)]
    batches = [*photos, *np.array_split(stress_images(stress, side), max(stress // 50, 1))]
    census = RoundingCensus(program)
    expected: list[Pixels] = []
    with tempfile.TemporaryDirectory() as scratch:
        bundle = write_bundle(quantized, model, Path(scratch) / "bundle", LoweringOptions(), None, say)
        # Tiles that are too small are refused now, not after all the rest.
        plan_tiles(side, side, tile, bundle.require_manifest().receptive_radius_px or 0)
        for index, batch in enumerate(batches):
            expected.append(interpret(program, batch, census.watch))
            say(f"integers: {index + 1} of {len(batches)}")
        click.echo(census.summary())
        differing = 0
        for name, upscale, count in _contestants(quantized, bundle, tile, len(photos), len(batches)):
            wrong = sum(
                int((upscale(batch) != right).sum())
                for batch, right in zip(batches[:count], expected[:count], strict=True)
            )
            total = sum(right.size for right in expected[:count])
            differing += wrong
            click.echo(f"{name:28s} {total:12d} bytes, {wrong} differ")
    sys.exit(1 if differing else 0)


def _contestants(
    model: QuantizedModel, bundle: Bundle, tile: int, photos: int, everything: int
) -> Iterator[tuple[str, Upscale, int]]:
    """Name, function, and how many of the batches it is tried on: tiles make sense on photos only."""
    for name, dtype, threads in TORCH:
        reference = TorchReference(model, dtype)
        torch.set_num_threads(threads)
        yield name, _rounded(reference.upscale), everything
    for name, (runtime, options) in RUNTIMES.items():
        with open_runtime(bundle, runtime, options) as opened:
            yield name, _rounded(opened.upscale), everything
    for runtime in ("onnxruntime", "openvino") if tile else ():
        with Engine.open(bundle, runtime) as engine:
            yield f"{runtime}, tiles of {tile}", partial(_upscale_image, engine, tile), photos


def _rounded(upscale: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Upscale:
    return lambda batch: round_to_uint8(upscale(batch.astype(np.float32)))


def _upscale_image(engine: Engine, tile: int, batch: Pixels) -> Pixels:
    image = np.ascontiguousarray(batch[0].transpose(1, 2, 0))
    return engine.upscale(image, tile=tile, bits=8).transpose(2, 0, 1)[None]


if __name__ == "__main__":
    run(command, "python tools/exact_agreement.py")
