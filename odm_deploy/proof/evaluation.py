"""PSNR and SSIM over the images of a set, by the protocol of the super-resolution literature.

What is measured, a model.pt, float weights or a bundle on a runtime, is a function on arrays here: `Upscale`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from odm_deploy.bundle import Bundle
from odm_deploy.errors import UsageError
from odm_deploy.imaging.pairs import ImagePair, Rgb, find_pairs
from odm_deploy.imaging.pixels import to_batch, to_pixels
from odm_deploy.kinds_of_files import is_checkpoint
from odm_deploy.progress import Say, silent
from odm_deploy.proof.metrics import psnr_y, ssim_y
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import open_runtime

if TYPE_CHECKING:
    from torch import Tensor

Upscale = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]
"""float32 [N, 3, H, W], RGB in 0..255 -> floats [N, 3, scale*H, scale*W], unclamped."""


@dataclass(frozen=True)
class Score:
    """Mean over images."""

    psnr_y_db: float
    """Peak signal-to-noise ratio of luma, in dB."""
    ssim_y: float
    """Structural similarity of luma."""


@dataclass
class Quality:
    """PSNR and SSIM against ground truth, image by image."""

    psnr_y_db: list[float] = field(default_factory=list[float])
    ssim_y: list[float] = field(default_factory=list[float])

    def add(self, output: Rgb, truth: Rgb, shave: int) -> None:
        """Measure one image; `shave` border pixels are left out, by convention the scale.

        Raises:
            InputError: the sizes differ, or less than 11x11 pixels are left inside the border.
        """
        self.psnr_y_db.append(psnr_y(output, truth, shave))
        self.ssim_y.append(ssim_y(output, truth, shave))

    @property
    def mean(self) -> Score:
        """Over all images, of which there must be one."""
        return Score(float(np.mean(self.psnr_y_db)), float(np.mean(self.ssim_y)))

    def to_dict(self) -> dict[str, float | None]:
        """Means; None where there was no ground truth."""
        return {**asdict(self.mean)} if self.psnr_y_db else {"psnr_y_db": None, "ssim_y": None}


def evaluate(upscale: Upscale, pairs: Iterable[ImagePair], scale: int) -> Quality:
    """Upscale the images of a benchmark set, round to 8 bits, and measure; `scale` border pixels are left out.

    Raises:
        InputError: an output that is not finite, or not of its ground truth's size.
    """
    quality = Quality()
    for pair in pairs:
        quality.add(upscale_pixels(upscale, pair.low), pair.high, scale)
    return quality


def upscale_pixels(upscale: Upscale, low: Rgb) -> Rgb:
    """uint8 [H, W, 3] -> uint8 [scale*H, scale*W, 3], rounded half to even and clamped.

    Raises:
        InputError: the output is not finite.
    """
    return to_pixels(upscale(to_batch(low)))


def upscaler_of(network: Callable[[Tensor], Tensor], device: str = "cpu") -> Upscale:
    """A torch network as it is, without gradients; images go to `device` and come back."""
    import torch

    from odm_deploy.networks.running import run_network

    @torch.no_grad()
    def upscale(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        return run_network(network, torch.from_numpy(images).to(device)).cpu().numpy()

    return upscale


def open_upscaler(
    model: Path, scale: int | None = None, *, runtime: str | None = None, threads: int | None = None
) -> tuple[Upscale, int]:
    """The function that upscales, and its factor.

    Args:
        model: a model.pt (run by the torch reference), a bundle or model.onnx (run by a runtime).
        scale: output pixels per input pixel, where the model does not say; where it does, it must be the same.
        runtime: what runs a bundle; None takes the fastest that works here.
        threads: CPU threads of that runtime.

    Raises:
        InputError: the model is missing or damaged.
        MissingError: no runtime for it is installed here.
        UsageError: the scale is not known, or another one.
    """
    if is_checkpoint(model):
        from odm_deploy.checkpoint import load_model
        from odm_deploy.proof.reference import TorchReference

        quantized = load_model(model)
        upscale, own = TorchReference(quantized).upscale, quantized.scale
    else:
        bundle = Bundle.open(model)
        upscale = open_runtime(bundle, runtime, RuntimeOptions(threads=threads)).upscale
        own = scale if bundle.manifest is None else bundle.manifest.scale
    if own is None:
        raise UsageError(f"the scale of {model} is not known", why="it lies in no bundle", fix="add --scale")
    if scale not in (None, own):
        raise UsageError(f"--scale {scale}", why=f"{model} upscales by {own}", fix="leave out --scale")
    return upscale, own


def open_float_weights(
    weights: Path,
    dataset: Path,
    *,
    network: str | None = None,
    scale: int | None = None,
    settings: Mapping[str, Any] = {},
    say: Say = silent,
) -> tuple[Upscale, int]:
    """The function that upscales with float weights as `load_network` reads them, and its factor.

    How images go into a network from elsewhere is tried on those of the set, unless `settings` has it; `say` takes a
    line about that.

    Raises:
        InputError, UsageError, MissingError: as `load_network`, `find_pairs` and `settle_input_format`.
    """
    from odm_deploy.networks.loading import load_network
    from odm_deploy.quantization.input_format import settle_input_format

    loaded = load_network(weights, network=network, scale=scale, settings=settings)
    photographs = (file.load().high for file in find_pairs(dataset, loaded.scale))
    loaded, told = settle_input_format(loaded, settings, photographs)
    if told:
        say(told)
    return upscaler_of(loaded), loaded.scale
