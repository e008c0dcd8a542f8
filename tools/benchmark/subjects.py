"""The networks that are timed: trained weights where they are at hand, random ones of the published size elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sample_networks import load_crops, random_network, spread_out

from odm_deploy.errors import InputError
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.folding import fold_branches
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.networks.loading import load_network
from odm_deploy.networks.trusted_builders import build_module, is_builder_path

SMALL, MIDDLE, LARGE = (96, 96), (180, 320), (270, 480)
"""Inputs: height and width in pixels."""


@dataclass(frozen=True)
class Subject:
    """A network to time."""

    name: str
    weights: str | None = None
    """File below the folder of weights; None: there is none."""
    stand_in: tuple[str, dict[str, Any]] | None = None
    """This project's network, or the path of spandrel's, and its settings: what takes random weights where there
    is no file."""
    sizes: tuple[tuple[int, int], ...] = (SMALL, MIDDLE, LARGE)
    """Inputs it is timed at."""

    def arguments(self, folder: Path) -> list[str]:
        """What `odm-deploy quantize` has to be told of it: its file, and what builds it where the file does not say."""
        builder, settings = self.stand_in or ("", {})
        told = [f"--set={key}={value}" for key, value in settings.items()] if is_builder_path(builder) else []
        return [str(folder / (self.weights or "no-weights")), *([f"--network={builder}"] if told else []), *told]

    def load(self, folder: Path) -> tuple[SuperResolutionNetwork, bool]:
        """The float network, and whether its weights are trained, so that its pictures can be judged.

        Raises:
            InputError: its file is not in `folder`, and nothing stands in for it.
        """
        if self.weights is not None and (folder / self.weights).is_file():
            builder, settings = self.stand_in or ("", {})
            path = folder / self.weights
            known = not is_builder_path(builder)
            return load_network(path) if known else load_network(path, network=builder, settings=settings), True
        if self.stand_in is None:
            raise InputError(f"no {folder / (self.weights or '')}", fix="name the folder that holds it with --weights")
        name, config = self.stand_in
        if is_builder_path(name):
            return spread_out(_of_spandrel(name, config), load_crops(1)), False
        return random_network(name, load_crops(1), {"scale": 4, **config}), False


def _of_spandrel(builder: str, arguments: dict[str, Any]) -> SuperResolutionNetwork:
    torch.manual_seed(0)
    module = build_module(builder, arguments).eval()
    fold_branches(module)
    return foreign_network(module, builder=builder, arguments=arguments)


_SPAN = {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 48, "upscale": 4}

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        Subject("edsr", "edsr_baseline_x4.pt", ("edsr", {})),
        Subject("srresnet", None, ("srresnet", {})),
        Subject("rdn-small", None, ("rdn", {"blocks": 4, "convolutions": 4, "growth": 32}), sizes=(SMALL, MIDDLE)),
        Subject("swinir-light", None, ("swinir", {}), sizes=(SMALL,)),
        Subject("span", "public/span_x4_ch48.pth", ("spandrel.architectures.SPAN:SPAN", _SPAN), sizes=(SMALL, MIDDLE)),
        Subject("compact", "public/realesr-animevideov3-x4.pth"),
        Subject("rrdb-anime", "public/realesrgan-x4plus-anime.pth", sizes=(SMALL,)),
    )
}
"""By name. Those of other people need their files."""
