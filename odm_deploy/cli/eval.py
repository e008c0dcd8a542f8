"""`odm-deploy eval`: PSNR and SSIM on a benchmark set, by the protocol of the super-resolution literature."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odm_deploy.cli.trust import trust_option
from odm_deploy.terminal import emit_json, json_option, progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Upscale = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]


@click.command("eval")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--dataset", type=click.Path(path_type=Path), required=True, help="Folder with HR/ and LR_bicubic/X4/.")
@click.option("--scale", type=int, help="Upscaling factor. [default: the model's]")
@click.option("--network", help="Evaluate float WEIGHTS of this architecture instead of a quantized model.")
@click.option("--runtime", help="Run a bundle on this runtime. [default: the fastest that works]")
@click.option("--threads", type=int, help="CPU threads. [default: one a physical core]")
@trust_option
@json_option
def command(
    model: Path,
    dataset: Path,
    scale: int | None,
    network: str | None,
    runtime: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure MODEL on a benchmark set.

    MODEL is a model.pt (run by the torch reference), a bundle or model.onnx (run by a runtime), or float weights with
    --network. Outputs are rounded to 8 bits, `scale` border pixels are left out, Y channel only.
    """
    import numpy as np

    from odm_deploy.imaging.datasets import BenchmarkSet
    from odm_deploy.imaging.pixels import to_batch, to_pixels
    from odm_deploy.proof.metrics import psnr_y, ssim_y

    upscale, factor = _open(model, scale, network, runtime, threads)
    pairs = BenchmarkSet.from_folder(dataset, factor)
    rows: list[dict[str, Any]] = []
    with progress("images") as track:
        for pair in track(pairs, len(pairs)):
            low, high = pair.load()
            output = to_pixels(upscale(to_batch(low)))
            rows.append(
                {"name": pair.name, "psnr_y_db": psnr_y(output, high, factor), "ssim_y": ssim_y(output, high, factor)}
            )
    mean = {key: float(np.mean([row[key] for row in rows])) for key in ("psnr_y_db", "ssim_y")}
    if as_json:
        emit_json({"dataset": pairs.name, "scale": factor, **mean, "images": rows})
        return
    for row in [*rows, {"name": f"{pairs.name} x{factor}, mean", **mean}]:
        click.echo(f"{row['name']:24s} {row['psnr_y_db']:7.3f} dB  {row['ssim_y']:.4f}")


def _open(
    model: Path, scale: int | None, network: str | None, runtime: str | None, threads: int | None
) -> tuple[Upscale, int]:
    """The function that upscales, and its factor."""
    from odm_deploy.errors import UsageError

    if network is not None:
        if scale is None:
            raise UsageError("--network without --scale", fix="say what the weights were trained for")
        return _float_network(model, network, scale), scale
    if model.suffix in (".pt", ".pth"):
        from odm_deploy.checkpoint import load_model
        from odm_deploy.proof.torch_reference import TorchReference

        quantized = load_model(model)
        upscale, own = TorchReference(quantized).upscale, quantized.scale
    else:
        from odm_deploy.manifest import manifest_beside
        from odm_deploy.runtimes.base import RuntimeOptions
        from odm_deploy.runtimes.registry import open_runtime

        opened = open_runtime(model, runtime, RuntimeOptions(threads=threads))
        manifest = manifest_beside(model)
        upscale, own = opened.upscale, scale if manifest is None else manifest.scale
    if own is None:
        raise UsageError(f"the scale of {model} is not known", why="it lies in no bundle", fix="add --scale")
    if scale not in (None, own):
        raise UsageError(f"--scale {scale}", why=f"{model} upscales by {own}")
    return upscale, own


def _float_network(weights: Path, name: str, scale: int) -> Upscale:
    """A float network from public weights."""
    import torch

    from odm_deploy.networks.registry import network_from_state_dict
    from odm_deploy.networks.state_dict import read_state_dict

    network = network_from_state_dict(name, read_state_dict(weights), scale)

    @torch.no_grad()
    def upscale(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        return network(torch.from_numpy(images)).numpy()

    return upscale
