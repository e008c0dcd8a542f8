"""The reference: the model.pt that a bundle is held against, computed by torch as it was trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odm_deploy.bundle import Bundle
from odm_deploy.bundle.manifest import Manifest
from odm_deploy.checkpoint import load_model
from odm_deploy.errors import InputError, UsageError
from odm_deploy.files import file_sha256
from odm_deploy.quantization.model import QuantizedModel, tapped


def reference_of(bundle: Bundle, against: Path | None = None) -> QuantizedModel:
    """The model.pt that was named, or the bundle's own if it still is what it was.

    Raises:
        InputError: it is missing, damaged, or not what the bundle was made from.
        UsageError: none was named, and there is no bundle to name one; or its network is foreign and not trusted.
    """
    manifest = bundle.manifest
    if against is None:
        if manifest is None:
            raise UsageError("nothing to verify against", why=f"{bundle} is no bundle", fix="add --against model.pt")
        against = _recorded(bundle, manifest)
    model = load_model(against)
    if manifest is not None and file_sha256(against) != manifest.checkpoint.get("sha256"):
        raise InputError(
            f"{against} is not what {bundle} was made from",
            why="its SHA-256 differs from the one in the manifest",
            fix=f"export again: odm-deploy export {against} -o {bundle}",
        )
    return model


def _recorded(bundle: Bundle, manifest: Manifest) -> Path:
    """Where the bundle says that its model.pt lies: seen from the bundle, or, in older ones, from where it was made."""
    if "path" not in manifest.checkpoint:
        raise InputError(f"{bundle} names no model.pt", fix="name it: --against model.pt")
    path = Path(manifest.checkpoint["path"])
    places = ([] if bundle.folder is None else [bundle.folder / path]) + [path]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(
            f"the model.pt of {bundle} is gone",
            why=f"there is no {os.path.relpath(places[0].resolve())}",
            fix="name it: --against model.pt",
        )
    return found


class TorchReference:
    """A quantized model that takes and returns numpy arrays.

    Args:
        model: the model; float64 makes a copy of it.
        dtype: `float32`, what runtimes are compared with, or `float64`, which measures the noise floor.
    """

    def __init__(self, model: QuantizedModel, dtype: str = "float32") -> None:
        self._dtype = {"float32": torch.float32, "float64": torch.float64}[dtype]
        self._model = model if dtype == "float32" else model.double()

    @torch.no_grad()
    def upscale(self, images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        """[N, 3, H, W] RGB in 0..255 -> [N, 3, scale*H, scale*W], unclamped, in the reference's own precision."""
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self._dtype)
        return self._model(batch).numpy()

    @torch.no_grad()
    def upscale_jittered(
        self, images: NDArray[np.float32], seed: int, noise_steps: float = 0.0, tie_share: float = 1.0
    ) -> NDArray[np.floating[Any]]:
        """The same with every quantizer's input moved, at random.

        By one unit in the last place that is as legitimate a result as any: summing a convolution in another order
        moves its output by more. Several of them show how far rounding alone can carry the output (Monte Carlo
        arithmetic, Parker 1997).

        Args:
            images: float32 [N, 3, H, W] in 0..255.
            seed: equal seeds give equal results.
            noise_steps: how far a value moves at most, in steps of its layer's grid, where that is more than one unit
                in its last place.
            tie_share: share, 0..1, of the values exactly between two codes that are moved at all.
        """
        generator = torch.Generator().manual_seed(seed)
        unit = torch.finfo(self._dtype).eps
        grids = self._model.grids

        def jitter(name: str) -> Callable[[Tensor], Tensor]:
            grid = grids[name]

            def move(x: Tensor) -> Tensor:
                noise = torch.rand(x.shape, generator=generator, dtype=x.dtype) * 2 - 1
                if tie_share < 1.0:
                    steps = (x.double() - (grid.center or 0.0)) / grid.scale
                    chance = torch.rand(x.shape, generator=generator, dtype=x.dtype)
                    noise[(steps - steps.floor() == 0.5) & (chance >= tie_share)] = 0.0
                return x + noise * torch.clamp(x.abs() * unit, min=noise_steps * grid.scale)

            return move

        with tapped(self._model, jitter):
            return self.upscale(images)
