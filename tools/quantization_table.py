"""What each ingredient of post-training quantization is worth, next to onnxruntime's quantizer; one network a call.

python tools/quantization_table.py WEIGHTS --images DIR --benchmark DIR --out table.json    adds to the same file
python tools/quantization_table.py --out table.json                                         prints what it holds

Rows already in the file are not measured again. Networks that the weights do not tell, and settings such as
input_range, are named as for `odm-deploy quantize`.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from toolbox import COMMAND, markdown_table, read_json, write_json
from torch import Tensor

from odm_deploy.accounting import float_shares
from odm_deploy.errors import UsageError
from odm_deploy.imaging.pairs import ImagePair, find_pairs
from odm_deploy.imaging.pixels import to_batch, to_pixels
from odm_deploy.lowering.lower import lower
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.loading import load_network
from odm_deploy.proof.metrics import psnr_y
from odm_deploy.quantization.calibration_images import CalibrationImages, choose_images
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.terminal import run

Upscale = Callable[[Tensor], Tensor]

NOTHING = {"equalize": False, "output_ranges": False, "adaptive_rounding": False, "correct_bias": False}
INGREDIENTS: dict[str, dict[str, bool]] = {
    "plain": NOTHING,
    "equalized": {**NOTHING, "equalize": True},
    "output ranges": {**NOTHING, "output_ranges": True},
    "bias corrected": {**NOTHING, "correct_bias": True},
    "rounded adaptively": {**NOTHING, "adaptive_rounding": True},
    "all": {},
}
PEER = "onnxruntime.quantization"
PEER_BITS = 8


@click.command(context_settings=COMMAND)
@click.argument("weights", required=False, type=click.Path(path_type=Path))
@click.option("--name", help="Of the network in the table.  [default: the file's]")
@click.option("--network", metavar="NAME", help="As for odm-deploy quantize.")
@click.option("--scale", type=int, help="As for odm-deploy quantize.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=NUMBER", help="As for odm-deploy quantize.")
@click.option("--images", metavar="DIR", help="Images to calibrate on.")
@click.option("--max-images", default=32, show_default=True, help="Use at most this many.")
@click.option("--crop", "crop_px", default=256, show_default=True, metavar="PX", help="Middle of larger inputs.")
@click.option("--benchmark", metavar="DIR", help="Folder with HR and LR_bicubic to measure on.")
@click.option("--bits", type=int, default=8, show_default=True, help="Width of the body.")
@click.option("--only", multiple=True, help=f"Of {', '.join(INGREDIENTS)}, {PEER}; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file that rows are added to.")
def command(
    weights: Path | None,
    name: str | None,
    network: str | None,
    scale: int | None,
    overrides: tuple[str, ...],
    images: str | None,
    max_images: int,
    crop_px: int,
    benchmark: str | None,
    bits: int,
    only: tuple[str, ...],
    out: Path,
) -> None:
    """Measure, keep every row at once, and print the table as markdown."""
    rows: dict[str, dict[str, Any]] = read_json(out) if out.exists() else {}
    if weights is not None:
        if images is None or benchmark is None:
            raise UsageError("nothing to measure on", fix="give --images and --benchmark")
        settings = {key: float(value) for key, _, value in (each.partition("=") for each in overrides)}
        loaded = load_network(weights, network=network, scale=scale, settings=settings)
        inputs = list(CalibrationImages(choose_images(images, max_images), loaded.scale, crop_px))
        judge = _Judge(loaded, [file.load() for file in find_pairs(benchmark, loaded.scale)])
        for row in only or (*INGREDIENTS, *([PEER] if bits == PEER_BITS else [])):
            key = f"{name or weights.stem} {bits} {row}"
            if key not in rows:
                measured = _peer(loaded, inputs, judge) if row == PEER else _own(loaded, inputs, judge, bits, row)
                rows[key] = {"network": name or weights.stem, "bits": bits, "row": row, **measured}
                write_json(out, rows)
    click.echo(to_markdown(rows))


class _Judge:
    """A benchmark set and what the float network makes of it."""

    def __init__(self, network: SuperResolutionNetwork, pairs: Sequence[ImagePair]) -> None:
        self.scale, self.pairs = network.scale, pairs
        self._float = [self._of(network, pair) for pair in pairs]
        self.float_db = self._psnr_y(self._float)

    def measure(self, upscale: Upscale) -> dict[str, float]:
        outputs = [self._of(upscale, pair) for pair in self.pairs]
        between = [
            10 * math.log10(255**2 / max(float((a - b).square().mean()), 1e-12))
            for a, b in zip(outputs, self._float, strict=True)
        ]
        return {"float_db": self.float_db, "psnr_y_db": self._psnr_y(outputs), "between_db": float(np.mean(between))}

    @torch.no_grad()
    def _of(self, upscale: Upscale, pair: ImagePair) -> Tensor:
        return upscale(torch.from_numpy(to_batch(pair.low))).clamp(0, 255)

    def _psnr_y(self, outputs: Sequence[Tensor]) -> float:
        pairs = zip(outputs, self.pairs, strict=True)
        return float(np.mean([psnr_y(to_pixels(output.numpy()), pair.high, self.scale) for output, pair in pairs]))


def _own(
    network: SuperResolutionNetwork, inputs: list[Tensor], judge: _Judge, bits: int, row: str
) -> dict[str, float | int]:
    started = time.perf_counter()
    settings = dataclasses.replace(CalibrationSettings(), **INGREDIENTS[row])
    model, _ = calibrate(network, inputs, QuantizationPolicy(LayerBits(bits, bits)), settings)
    seconds = time.perf_counter() - started
    share = 1.0 - sum(each.macs_share for each in float_shares(model))
    return {**judge.measure(model), "quantized_share_of_macs": share, "seconds": seconds}


def _peer(network: SuperResolutionNetwork, inputs: list[Tensor], judge: _Judge) -> dict[str, float | int]:
    """Onnxruntime's static quantizer as its documentation has it: QDQ, per channel, min-max, everything."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(inputs)

        def get_next(self) -> Any:
            image = next(self._left, None)
            return None if image is None else {"input": image.numpy()}

    with tempfile.TemporaryDirectory(prefix="quantization_table_") as folder:
        plain, quantized = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        plain.write_bytes(lower(QuantizedModel(network)).SerializeToString())
        started = time.perf_counter()
        quantize_static(plain, quantized, Reader(), per_channel=True)
        seconds = time.perf_counter() - started
        session = onnxruntime.InferenceSession(quantized.read_bytes(), providers=["CPUExecutionProvider"])

    def upscale(image: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {"input": image.numpy()})[0]))

    return {**judge.measure(upscale), "quantized_share_of_macs": 1.0, "seconds": seconds}


def to_markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as one table."""
    head = ["network", "bits", "", "PSNR-Y (lost)", "PSNR to float", "quantized MACs", "seconds"]
    lines = [
        [
            row["network"],
            row["bits"],
            row["row"],
            f"{row['psnr_y_db']:.3f} ({row['psnr_y_db'] - row['float_db']:+.3f}) dB",
            f"{row['between_db']:.1f} dB",
            f"{row['quantized_share_of_macs']:.1%}",
            f"{row['seconds']:.0f}",
        ]
        for row in rows.values()
    ]
    return markdown_table(head, lines)


if __name__ == "__main__":
    run(command, "quantization_table")
