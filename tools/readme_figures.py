"""The tables of docs/measurements on agreement and engines, measured again: `python tools/readme_figures.py --out DIR`.

Calibrates EDSR-baseline x4 at several widths, exports each, and writes two markdown tables: quality and agreement on a
benchmark set for the torch reference, ONNX Runtime and OpenVINO, and the coverage and build time of TensorRT-RTX
engines. Every row is kept in DIR as it is finished, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
from toolbox import COMMAND, ROOT, kept, markdown_table, read_json, run_python

from training.recipe_files import expand_places

PARITY_BITS = ("8", "6", "4")
COVERAGE_BITS = ("8", "7", "6", "5", "4", "3", "2")
RUNTIMES = ("onnxruntime", "openvino")


@click.command(context_settings=COMMAND)
@click.option("--weights", default="{weights}/edsr_baseline_x4.pt", show_default=True, help="Of EDSR-baseline x4.")
@click.option("--images", default="{data}/train/clean100", show_default=True, help="Folder to calibrate on.")
@click.option("--dataset", default="{data}/benchmark/Set5", show_default=True, help="Folder of a benchmark set.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "runs/figures", show_default=True)
def main(weights: str, images: str, dataset: str, out: Path) -> None:
    """Measure every row that DIR does not hold yet, and print the tables as markdown."""
    out.mkdir(parents=True, exist_ok=True)
    start, photos, test_set = map(expand_places, (weights, images, dataset))
    parity = [_parity(start, photos, test_set, bits, out) for bits in PARITY_BITS]
    of_edsr = ("--network", "edsr", "--scale", "4", "--dataset", test_set)
    floating = kept(out / "float.json", lambda: _odm("eval", start, *of_edsr))
    coverage = [_coverage(start, photos, bits, rest, out) for bits in COVERAGE_BITS for rest in ("fp32", "fp16")]
    click.echo(_parity_table(floating, parity))
    click.echo(_coverage_table(coverage))


def _run(module: str, *arguments: Any) -> str:
    """Standard output of a command; its gate may fail, its run may not."""
    code, output, errors = run_python(module, *arguments)
    if code not in (0, 3):
        raise click.ClickException(f"{module} {' '.join(map(str, arguments))}: {errors.strip().splitlines()[-1]}")
    return output


def _odm(*arguments: Any) -> dict[str, Any]:
    return json.loads(_run("odm_deploy", *arguments, "--json"))


def _model(weights: Path, images: Path, bits: str, out: Path, *extra: str, suffix: str = "") -> Path:
    """A calibrated model.pt."""
    path = out / f"edsr_w{bits}{suffix}.pt"
    if not path.exists():
        arguments = ["--network", "edsr", "--scale", 4, "--bits", bits, "--images", images, *extra, "-o", path]
        _run("calibration", weights, *arguments)
    return path


def _parity(weights: Path, images: Path, dataset: Path, bits: str, out: Path) -> dict[str, Any]:
    def measure() -> dict[str, Any]:
        bundle = out / f"edsr_w{bits}"
        model = _model(weights, images, bits, out)
        _odm("export", model, "-o", bundle, "--no-engine")
        low = dataset / "LR_bicubic" / "X4"
        check = ("verify", bundle, "--against", model, "--images", low, "--runtime")
        return {"bits": bits, **{name: _odm(*check, name) for name in RUNTIMES}}

    return kept(out / f"parity_w{bits}.json", measure)


def _coverage(weights: Path, images: Path, bits: str, precision: str, out: Path) -> dict[str, Any]:
    def measure() -> dict[str, Any]:
        row: dict[str, Any] = {"bits": bits, "precision": precision}
        # Which layers run as int8 depends on widths, not on how well the ranges are chosen: two images do.
        for key, extra in (("body", []), ("whole", ["--body-end", "8", "--tail", "8"])):
            model = _model(weights, images, bits, out, "--max-images", "2", *extra, suffix=f"_{key}")
            bundle = out / f"edsr_w{bits}_{precision}_{key}"
            started = time.perf_counter()
            _odm("export", model, "-o", bundle, "--precision", precision)
            row[f"{key}_export_s"] = time.perf_counter() - started
            manifest = read_json(bundle / "manifest.json")
            found = _odm("inspect", bundle)
            row[key] = f"{found['int8_layers']} of {found['quantized_layers']}"
            row[f"{key}_build_s"] = manifest["engine"]["build_s"]
            row[f"{key}_plan_mb"] = manifest["engine"]["plan_bytes"] / 1e6
        return row

    return kept(out / f"coverage_w{bits}_{precision}.json", measure)


def _parity_table(floating: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    head = ["bits", "computed by", "PSNR-Y / SSIM", "identical values", "largest step", "PSNR between"]
    lines = [["float", "torch", _quality(floating), "", "", ""]]
    for row in rows:
        first = row[RUNTIMES[0]]
        lines.append([row["bits"], "torch fake-quant (reference)", _quality(first["reference"]), "", "", ""])
        lines.append([row["bits"], "*noise floor: torch float64*", "", *_distance(first["noise_floor"])])
        lines += [[row["bits"], name, _quality(row[name]["runtime"]), *_distance(row[name])] for name in RUNTIMES]
    return markdown_table(head, lines)


def _quality(found: dict[str, float]) -> str:
    return f"{found['psnr_y_db']:.3f} dB / {found['ssim_y']:.4f}"


def _distance(found: dict[str, float]) -> list[str]:
    return [f"{found['identical_pixels']:.4%}", str(found["max_lsb"]), f"{found['psnr_between_db']:.1f} dB"]


def _coverage_table(rows: list[dict[str, Any]]) -> str:
    head = ["bits", "rest"]
    head += ["int8, body quantized", "build", "plan", "int8, body end and tail too", "build", "plan"]
    lines: list[list[str]] = []
    for row in rows:
        cells = [row["bits"], row["precision"]]
        for key in ("body", "whole"):
            cells += [row[key], f"{row[f'{key}_build_s']:.2f} s", f"{row[f'{key}_plan_mb']:.1f} MB"]
        lines.append(cells)
    return markdown_table(head, lines)


if __name__ == "__main__":
    main()
