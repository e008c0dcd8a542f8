"""`odm-deploy eval`: PSNR and SSIM on a benchmark set, by the protocol of the super-resolution literature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odm_deploy.cli.options import runtime_option, threads_option, trust_option, weights_options
from odm_deploy.errors import UsageError
from odm_deploy.kinds_of_files import is_checkpoint
from odm_deploy.terminal import emit_json, json_option, progress, say, show


@click.command("eval")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--dataset", type=click.Path(path_type=Path), required=True, help="Folder with HR/ and LR_bicubic/X4/.")
@weights_options
@runtime_option("A bundle: where to run it")
@threads_option
@trust_option
@json_option
def command(
    model: Path,
    dataset: Path,
    network: str | None,
    scale: int | None,
    settings: dict[str, Any],
    runtime: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure MODEL on a benchmark set.

    MODEL is a model.pt (run by the torch reference), a bundle or model.onnx (run by a runtime), or a file of float
    weights. Outputs are rounded to 8 bits, `scale` border pixels are left out, Y channel only.
    """
    from odm_deploy.imaging.pairs import find_pairs
    from odm_deploy.proof.evaluation import evaluate, open_float_weights, open_upscaler

    if (network or settings) and model.is_dir():
        raise UsageError(
            "--network and --set are about float weights", why=f"{model} is a folder", fix="leave them out"
        )
    if runtime is not None and is_checkpoint(model) and not model.is_dir():
        raise UsageError(
            f"--runtime {runtime} with {model}",
            why="PyTorch runs it",
            fix="leave --runtime out, or name a bundle of it",
        )
    if network or settings or _holds_float_weights(model):
        upscale, factor = open_float_weights(model, dataset, network=network, scale=scale, settings=settings, say=say)
    else:
        upscale, factor = open_upscaler(model, scale, runtime=runtime, threads=threads)
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
        show(f"{row['name']:24s} {row['psnr_y_db']:7.3f} dB  {row['ssim_y']:.4f}")


def _holds_float_weights(path: Path) -> bool:
    """Whether this is a file of weights, and no model.pt."""
    if not is_checkpoint(path) or not path.is_file():
        return False
    from odm_deploy.checkpoint import is_model

    return not is_model(path)
