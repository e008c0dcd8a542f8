"""What quantizing costs on a benchmark set: each ingredient alone, whole `odm-deploy quantize`, and other quantizers.

python tools/quantization_table.py WEIGHTS --images DIR --benchmark DIR --out table.json    adds to the same file
python tools/quantization_table.py --out table.json                                         prints what it holds

Rows already in the file are not measured again. Networks that the weights do not tell, and settings such as
input_range, are named as for `odm-deploy quantize`. A row that begins with a dash is a call of that command with these
options: --row "--bits 4 --finetune 3". All rows calibrate on the same images, those that `quantize` does not hold back.
--part 1/3, 2/3 .. calibrate the same rows on images of which none is in another part, which shows what is chance.
A second --benchmark measures the same models on images that no setting was ever chosen by.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from benchmark.rivals import nncf, onnxruntime_static
from benchmark.variants import Variant
from toolbox import COMMAND, markdown_table, read_json, write_json
from torch import Tensor

from odm_deploy.accounting import account
from odm_deploy.checkpoint import load_model
from odm_deploy.cli.calibration_inputs import load_float
from odm_deploy.cli.program import odm_deploy
from odm_deploy.errors import UsageError
from odm_deploy.imaging.pairs import ImagePair, find_pairs
from odm_deploy.imaging.pixels import to_batch, to_pixels
from odm_deploy.imaging.reading import choose_images, list_images
from odm_deploy.lowering.lower import lower
from odm_deploy.machine.host import adds_in_16_bits
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.trusted_builders import is_builder_path, trusting
from odm_deploy.proof.metrics import psnr_y
from odm_deploy.quantization.calibration_images import CalibrationImages, hold_back
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.terminal import run, say

Upscale = Callable[[Tensor], Tensor]

NOTHING = {"equalize": False, "output_ranges": False, "adaptive_rounding": False, "correct_bias": False}
INGREDIENTS: dict[str, dict[str, bool]] = {
    "plain": NOTHING,
    "equalized": {**NOTHING, "equalize": True},
    "output ranges": {**NOTHING, "output_ranges": True},
    "bias corrected": {**NOTHING, "correct_bias": True},
    "rounded adaptively": {**NOTHING, "adaptive_rounding": True},
    "all of these": {},
}
DEFAULT = "quantize"
"""The command as it is, at `--bits`."""
PEERS = ("onnxruntime.quantization", "NNCF performance", "NNCF mixed")
PEER_BITS = 8


@click.command(context_settings=COMMAND)
@click.argument("weights", required=False, type=click.Path(path_type=Path))
@click.option("--name", help="Of the network in the table.  [default: the file's]")
@click.option("--network", metavar="NAME", help="As for odm-deploy quantize.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=NUMBER", help="As for odm-deploy quantize.")
@click.option("--images", metavar="DIR", help="Images to calibrate on.")
@click.option("--max-images", default=32, show_default=True, help="Use at most this many.")
@click.option("--part", metavar="I/N", help="Of these images only the I-th, and every N-th behind it.  [default: all]")
@click.option("--crop", "crop_px", default=96, show_default=True, metavar="PX", help="Middle of larger inputs.")
@click.option(
    "--benchmark",
    "benchmarks",
    multiple=True,
    metavar="DIR",
    help="Folder with HR and LR_bicubic to measure on, or several.",
)
@click.option("--bits", type=int, default=8, show_default=True, help="Width of the body.")
@click.option(
    "--row", "rows", multiple=True, help=f"Of {', '.join((*INGREDIENTS, DEFAULT, *PEERS))}; repeatable. [all]"
)
@click.option("--nncf-python", type=click.Path(path_type=Path), help="Interpreter of an environment with NNCF.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file that rows are added to.")
def command(
    weights: Path | None,
    name: str | None,
    network: str | None,
    overrides: tuple[str, ...],
    images: str | None,
    max_images: int,
    part: str | None,
    crop_px: int,
    benchmarks: tuple[str, ...],
    bits: int,
    rows: tuple[str, ...],
    nncf_python: Path | None,
    out: Path,
) -> None:
    """Measure, keep every row at once, and print the table as markdown."""
    known: dict[str, dict[str, Any]] = read_json(out) if out.exists() else {}
    if weights is not None:
        if images is None or not benchmarks:
            raise UsageError("nothing to measure on", fix="give --images and --benchmark")
        with ExitStack() as cleanup:
            folder = images if part is None else cleanup.enter_context(_part_of(images, part))
            common = ["--images", folder, "--max-images", str(max_images), "--crop", str(crop_px), "--bits", str(bits)]
            common += ["--network", network] if network else []
            common += [text for each in overrides for text in ("--set", each)]
            settings = {key: float(value) for key, _, value in (each.partition("=") for each in overrides)}
            chosen = choose_images(folder, max_images)
            # Told how images go into it as the command is, or the float figures were another network's.
            loaded = load_float(weights, network, None, settings, chosen)
            seen = hold_back(chosen)[0]
            inputs = list(CalibrationImages(seen, loaded.scale, crop_px))
            judge = _Judge(loaded, benchmarks)
            for row in rows or (*INGREDIENTS, DEFAULT, *(PEERS if bits == PEER_BITS else ())):
                label = row if part is None else f"{row}, images {part}"
                key = f"{name or weights.stem} {bits} {label}"
                if key in known or (row.startswith("NNCF") and nncf_python is None):
                    continue
                say(key)
                if row in PEERS:
                    measured = _peer(row, loaded, inputs, judge, nncf_python)
                elif row in INGREDIENTS:
                    measured = _ingredient(loaded, inputs, judge, bits, row)
                elif row == DEFAULT or row.startswith("-"):
                    more = [] if row == DEFAULT else shlex.split(row)
                    measured = _whole(weights, [*common, *more], network, judge)
                else:
                    raise UsageError(f"no row {row!r}", fix="see --help")
                known[key] = {"network": name or weights.stem, "bits": bits, "row": label, **measured}
                write_json(out, known)
    click.echo(to_markdown(known))


@contextmanager
def _part_of(images: str, part: str) -> Generator[str]:
    """A folder with links to every N-th image of a folder, from the I-th on; `part` is I/N."""
    first, every = (int(text) for text in part.split("/"))
    with tempfile.TemporaryDirectory(prefix="quantization_table_") as folder:
        for path in list_images(images)[first - 1 :: every]:
            (Path(folder) / path.name).symlink_to(path.resolve())
        yield folder


class _Judge:
    """Benchmark sets and what the float network makes of them."""

    def __init__(self, network: SuperResolutionNetwork, benchmarks: Sequence[str]) -> None:
        self._sets: dict[str, _BenchmarkSet] = {}
        for folder in benchmarks:
            pairs = [file.load() for file in find_pairs(folder, network.scale)]
            self._sets[Path(folder).name] = _BenchmarkSet(network, pairs)

    def measure(self, upscale: Upscale) -> dict[str, dict[str, dict[str, float]]]:
        return {"benchmarks": {name: each.measure(upscale) for name, each in self._sets.items()}}


class _BenchmarkSet:
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


def _ingredient(
    network: SuperResolutionNetwork, inputs: list[Tensor], judge: _Judge, bits: int, row: str
) -> dict[str, Any]:
    """Calibration alone, with some of its steps."""
    started = _processor_seconds()
    settings = dataclasses.replace(CalibrationSettings(), **INGREDIENTS[row])
    model, _ = calibrate(network, inputs, QuantizationPolicy(LayerBits(bits, bits)), settings)
    seconds = _processor_seconds() - started
    return {**judge.measure(model), **_shares(model), "seconds": seconds}


def _whole(weights: Path, options: list[str], network: str | None, judge: _Judge) -> dict[str, Any]:
    """The command, with these options."""
    with (
        tempfile.TemporaryDirectory(prefix="quantization_table_") as folder,
        trusting(*filter(is_builder_path, [network or ""])),
    ):
        output = Path(folder) / "model.pt"
        started = _processor_seconds()
        odm_deploy.main(["quantize", str(weights), "-o", str(output), *options], standalone_mode=False)
        seconds = _processor_seconds() - started
        model = load_model(output)
    return {**judge.measure(model), **_shares(model), "seconds": seconds}


def _processor_seconds() -> float:
    """Of this process and those it waited for: what the clock says depends on who else is busy."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _shares(model: QuantizedModel) -> dict[str, Any]:
    counted = account(model).layers
    total = sum(layer.macs for layer in counted)
    by_width = Counter[str]()
    for layer in counted:
        if layer.name in model.layers:
            by_width[f"w{layer.weight_bits}a{layer.activation_bits}"] += layer.macs
    return {
        "quantized_share_of_macs": sum(by_width.values()) / total,
        "share_by_width": {width: macs / total for width, macs in by_width.items()},
    }


def _peer(
    row: str, network: SuperResolutionNetwork, inputs: list[Tensor], judge: _Judge, nncf_python: Path | None
) -> dict[str, Any]:
    """Somebody else's quantizer, as `make bench` has it, on the same images."""
    plain, images = lower(QuantizedModel(network)), [image.numpy() for image in inputs]
    with tempfile.TemporaryDirectory(prefix="quantization_table_") as folder:
        started = _processor_seconds()
        # Else sums of theirs would saturate here.
        seven_bits = adds_in_16_bits() is True
        if row == PEERS[0]:
            path = Path(folder) / "static.onnx"
            onnxruntime_static(plain, images, path, seven_bits=seven_bits)
        else:
            assert nncf_python is not None
            path = Path(folder) / "nncf.xml"
            nncf(nncf_python, plain, images, path, preset=row.split()[-1], seven_bits=seven_bits)
        seconds = _processor_seconds() - started
        variant = Variant(row, "onnxruntime" if path.suffix == ".onnx" else "openvino", "fp32", path)

        def upscale(image: Tensor) -> Tensor:
            opened = variant.open((image.shape[2], image.shape[3]))
            found = torch.from_numpy(np.array(opened.upscale(image.numpy())))
            opened.close()
            return found

        return {**judge.measure(upscale), "quantized_share_of_macs": None, "seconds": seconds}


def to_markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as one table: PSNR-Y on each benchmark set, what is lost there, and the PSNR to float."""
    sets = list(dict.fromkeys(name for row in rows.values() for name in row["benchmarks"]))
    head = [
        "network",
        "bits",
        "",
        *(f"{name}: PSNR-Y (lost) / to float, dB" for name in sets),
        "quantized MACs",
        "seconds",
    ]
    lines = [
        [
            row["network"],
            row["bits"],
            row["row"],
            *(_on_set(row["benchmarks"].get(name)) for name in sets),
            "" if row["quantized_share_of_macs"] is None else f"{row['quantized_share_of_macs']:.1%}",
            f"{row['seconds']:.0f}",
        ]
        for row in rows.values()
    ]
    return markdown_table(head, lines)


def _on_set(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    lost = found["psnr_y_db"] - found["float_db"]
    return f"{found['psnr_y_db']:.3f} ({lost:+.3f}) / {found['between_db']:.1f}"


if __name__ == "__main__":
    run(command, "quantization_table")
