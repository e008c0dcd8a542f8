"""`odm-deploy eval`: PSNR and SSIM on a benchmark set, by the protocol of the super-resolution literature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odm_deploy.cli.options import threads_option, trust_option
from odm_deploy.terminal import emit_json, json_option, progress


@click.command("eval")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--dataset", type=click.Path(path_type=Path), required=True, help="Folder with HR/ and LR_bicubic/X4/.")
@click.option("--scale", type=int, help="Upscaling factor. [default: the model's]")
@click.option("--network", help="Evaluate float WEIGHTS of this architecture instead of a quantized model.")
@click.option("--runtime", help="Run a bundle on this runtime. [default: the fastest that works]")
@threads_option
@trust_option
@json_option
def command(model: Path, dataset: Path, scale: int | None, as_json: bool, **options: Any) -> None:
    """Measure MODEL on a benchmark set.

    MODEL is a model.pt (run by the torch reference), a bundle or model.onnx (run by a runtime), or float weights with
    --network. Outputs are rounded to 8 bits, `scale` border pixels are left out, Y channel only.
    """
    from odm_deploy.imaging.pairs import find_pairs
    from odm_deploy.proof.evaluation import evaluate, open_upscaler

    upscale, factor = open_upscaler(model, scale, **options)
    files = find_pairs(dataset, factor)
    with progress("images") as track:
        found = evaluate(upscale, (file.load() for file in track(files, len(files))), factor)
    name, mean = dataset.resolve().name, found.to_dict()
    rows: list[dict[str, Any]] = [
        {"name": file.name, "psnr_y_db": psnr, "ssim_y": ssim}
        for file, psnr, ssim in zip(files, found.psnr_y_db, found.ssim_y, strict=True)
    ]
    if as_json:
        emit_json({"dataset": name, "scale": factor, **mean, "images": rows})
        return
    for row in [*rows, {"name": f"{name} x{factor}, mean", **mean}]:
        click.echo(f"{row['name']:24s} {row['psnr_y_db']:7.3f} dB  {row['ssim_y']:.4f}")
