"""Small versions of every own network, calibrated in every profile that it has, as bundles to plant faults in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sample_networks import load_crops, spread_out
from torch import nn

from odm_deploy.bundle.manifest import CPU_ONNX_FILE, MANIFEST_FILE, ONNX_FILE
from odm_deploy.checkpoint import save_model
from odm_deploy.export import write_bundle
from odm_deploy.imaging.pixels import to_batch
from odm_deploy.lowering.lower import LoweringOptions
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.registry import build_network
from odm_deploy.networks.spandrel_models import network_from_spandrel
from odm_deploy.progress import silent
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate

SIZES: dict[str, dict[str, Any]] = {
    "edsr": {"scale": 2, "features": 8, "blocks": 2},
    "srresnet": {"scale": 2, "features": 8, "blocks": 2, "input_range": 1.0},
    "rdn": {"scale": 2, "blocks": 2, "convolutions": 2, "growth": 6, "features": 8},
    "swinir": {"scale": 2, "channels": 8, "groups": 1, "depth": 2, "heads": 2, "window": 4, "hidden": 12},
}
"""By name: the hyper-parameters of networks that run in milliseconds."""

PUBLIC = ("compact",)
"""Networks that spandrel builds; where it is not installed, they cannot be asked for."""

PROFILES = ("ordinary", "sums", "exact", "integer")
"""Any scales; scales that make sums exact; everything exact; tensors between the layers on grids, too."""

RUNTIMES = ("onnxruntime", "openvino")
"""Those that run here."""

BITS = ("4", "8")
IMAGES = 2


@dataclass(frozen=True)
class Subject:
    """A network in a profile at a width, with float or uint8 edges."""

    network: str
    profile: str
    bits: str
    io: str = "float32"
    graph: str = ONNX_FILE
    """The file that faults go into; runtimes take that."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        marks = {"uint8": self.io == "uint8", "for CPUs": self.graph == CPU_ONNX_FILE}
        return " ".join((self.network, self.profile, self.bits, *(mark for mark, holds in marks.items() if holds)))

    def write(self, folder: Path) -> Path:
        """Calibrate and export into `folder`, which then holds `model.pt`, `images` and the bundle that is returned."""
        crops = load_crops(IMAGES)
        network = spread_out(_built(self.network), crops)
        images = [torch.from_numpy(to_batch(crop)) for crop in crops]
        policy = QuantizationPolicy.parse(self.profile if self.profile in ("exact", "integer") else "paper", self.bits)
        model, _ = calibrate(network, images, policy, CalibrationSettings(exact_sums=self.profile != "ordinary"))
        (folder / "images").mkdir(parents=True)
        for index, crop in enumerate(crops):
            Image.fromarray(crop).save(folder / "images" / f"{index}.png")
        save_model(model, folder / "model.pt")
        options = LoweringOptions(io="uint8" if self.io == "uint8" else "float32")
        bundle, for_cpus = folder / "bundle", self.graph == CPU_ONNX_FILE
        write_bundle(model, folder / "model.pt", bundle, options, None, silent, for_cpus=for_cpus)
        if for_cpus:
            manifest = json.loads((bundle / MANIFEST_FILE).read_text())
            manifest["cpu_onnx"]["runtimes"] = RUNTIMES
            (bundle / MANIFEST_FILE).write_text(json.dumps(manifest))
        return bundle


def _built(name: str) -> SuperResolutionNetwork:
    torch.manual_seed(0)
    if name not in PUBLIC:
        return build_network(name, SIZES[name])
    # Real-ESRGAN's small network: convolutions with PReLU, added to the image itself.
    widths = ((3, 8), (8, 8), (8, 8), (8, 12))
    body = nn.Sequential(*(part for i, o in widths for part in (nn.Conv2d(i, o, 3, padding=1), nn.PReLU(o))))
    return network_from_spandrel({f"body.{key}": value for key, value in body[:-1].state_dict().items()})


def all_subjects() -> list[Subject]:
    """Every network in every profile it has at 4 and 8 bits, with the graph for CPUs, and some with uint8 edges."""
    networks = [*SIZES, *PUBLIC]
    pairs = [(network, profile) for network in networks for profile in PROFILES if (network, profile) not in _LACKING]
    return [
        *(Subject(network, profile, bits) for network, profile in pairs for bits in BITS),
        *(Subject(network, profile, "4", graph=CPU_ONNX_FILE) for network, profile in pairs),
        *(Subject("edsr", profile, "4", "uint8") for profile in PROFILES),
    ]


_LACKING = {("swinir", "exact"), ("compact", "exact")}
"""Profiles that a network does not have."""
