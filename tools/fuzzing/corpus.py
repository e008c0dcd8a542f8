"""What mutation starts from: small files of every kind in tests/data/fuzz, written by this project's own code.

A folder a target. `make_corpus` writes the seeds; findings that were mended lie beside them.
"""

from __future__ import annotations

import io
import struct
import tempfile
from pathlib import Path

from toolbox import ROOT

CORPUS = ROOT / "tests" / "data" / "fuzz"


def inputs(target: str) -> list[bytes]:
    """The kept inputs of a target, in the order of their names."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


def keep(target: str, name: str, data: bytes) -> Path:
    """Keep an input for good; returns where."""
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def make_corpus() -> None:
    """Write the seeds of every target."""
    import numpy as np
    import torch
    from PIL import Image

    from odm_deploy.checkpoint import save_model
    from odm_deploy.export import write_bundle
    from odm_deploy.lowering.lower import LoweringOptions
    from odm_deploy.networks.registry import build_network
    from odm_deploy.progress import silent
    from odm_deploy.quantization.policy import QuantizationPolicy
    from odm_deploy.quantization.post_training import calibrate

    torch.manual_seed(0)
    network = build_network("edsr", {"scale": 2, "features": 4, "blocks": 1}).eval()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1)[None].copy())
    for profile in ("paper", "exact"):
        model, _ = calibrate(network, [image], QuantizationPolicy.parse(profile, "4"))
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            save_model(model, folder / "model.pt")
            write_bundle(model, folder / "model.pt", folder / "b", LoweringOptions(), None, silent)
            keep("checkpoint", f"seed-{profile}.pt", (folder / "model.pt").read_bytes())
            for target, file in (("manifest", "manifest.json"), ("onnx", "model.onnx"), ("golden", "golden.json")):
                path = folder / "b" / file
                if path.exists():
                    keep(target, f"seed-{profile}{path.suffix}", path.read_bytes())
    for name, state in (("plain", network.state_dict()), ("wrapped", {"params_ema": network.state_dict(), "iter": 5})):
        written = io.BytesIO()
        torch.save(state, written)
        keep("weights", f"seed-{name}.pt", written.getvalue())
    for suffix in ("png", "jpeg", "gif", "webp", "tiff", "bmp", "ppm"):
        written = io.BytesIO()
        Image.fromarray(pixels).save(written, suffix)
        keep("image", f"seed.{suffix}", written.getvalue())
    keep("recipe", "seed.toml", (ROOT / "training/recipes/edsr_x2_odm_w4a4.toml").read_bytes())
    for index, text in enumerate(("bits=w2a2", "run.iterations=200", "method.name='lsq'", "data.folders=['a', 'b']")):
        keep("override", f"seed-{index}", text.encode())
    for index, magic in enumerate((b"ftrt", b"trtx", b"blob")):
        keep("plan_header", f"seed-{index}", magic + struct.pack("<6I", 0, 240, 1024, 10, 13, 3) + bytes(64))
