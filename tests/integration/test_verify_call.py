"""`from odm_deploy import verify`: the proof as a call, without the command."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import odm_deploy
from odm_deploy import InputError, UsageError, VerifyOptions, quantize, verify
from odm_deploy.checkpoint import save_model
from odm_deploy.export import write_bundle
from odm_deploy.lowering.lower import LoweringOptions
from odm_deploy.networks.trusted_builders import trusting
from odm_deploy.progress import silent
from odm_deploy.proof.parity_report import Gates, ParityReport


def test_the_name_is_the_function_and_costs_nothing_before_it_is_asked_for():
    code = "import odm_deploy, sys; assert 'torch' not in sys.modules; from odm_deploy import verify; verify.__call__"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert inspect.isfunction(odm_deploy.verify)
    assert all(name in verify.__doc__ for name in ("Args:", "Raises:", "bundle:", "images:", "GateError"))
    assert all(field in VerifyOptions.__dataclass_fields__ for field in ("against", "truth", "runtime", "layers"))


def test_a_proof_is_a_report_and_nothing_is_printed(tiny_bundle, tiny_set, capsys):
    tracked, said = [], []

    def track(items, total, stage="images"):
        tracked.append((str(stage).partition(",")[0], total))
        return iter(items)

    options = VerifyOptions(runtime="onnxruntime", max_images=1, layers=False)
    report = verify(tiny_bundle, tiny_set / "LR_bicubic/X2", options, say=said.append, track=track)
    assert isinstance(report, ParityReport)
    assert (report.images, report.layers, report.failures(Gates())) == (1, [], [])
    assert report.to_dict(Gates())["reference"]["psnr_y_db"] is not None
    assert (tracked, said, capsys.readouterr()) == ([("lowering model.pt again", 95), ("images", 1)], [], ("", ""))
    tracked.clear()
    verify(tiny_bundle, tiny_set / "LR_bicubic/X2", VerifyOptions(runtime="onnxruntime", max_images=1), track=track)
    # Of a bundle of one graph; the image is taken twice, the second time with its values in random order.
    assert tracked[1] == ("comparing the layers on images", 2)


def test_what_is_not_there_is_an_error_of_the_documented_kind(tiny_bundle, tiny_set, tmp_path):
    images = tiny_set / "LR_bicubic/X2"
    with pytest.raises(InputError, match="no such file or folder"):
        verify(tmp_path / "nowhere", images)
    with pytest.raises(InputError, match="nothing"):
        verify(tiny_bundle, tmp_path / "nothing")
    (tmp_path / "model.onnx").write_bytes((tiny_bundle / "model.onnx").read_bytes())
    with pytest.raises(UsageError, match="nothing to verify against"):
        verify(tmp_path / "model.onnx", images)


def test_a_proof_on_no_images_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing is proven"):
        VerifyOptions(max_images=0)


class Windows(nn.Module):
    """Adds a table of 8x8 values to every window of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 12, 3, padding=1)
        self.table = nn.Parameter(torch.rand(1, 8, 8, 8))

    def forward(self, x):
        x = self.first(x)
        x = self.body(x + self.table.repeat(1, 1, x.shape[2] // 8, x.shape[3] // 8))
        return nn.functional.pixel_shuffle(self.last(x), 2)


def test_an_image_of_a_size_that_the_network_does_not_take_is_refused_before_any_work(tmp_path) -> None:
    path = f"{__name__}:Windows"
    model = quantize(Windows(), 8, [np.full((48, 48, 3), 90, np.uint8)], builder=path)
    save_model(model, tmp_path / "model.pt")
    Image.new("RGB", (48, 64)).save(tmp_path / "a.png")
    Image.new("RGB", (50, 64)).save(tmp_path / "b.png")
    said: list[str] = []
    with trusting(path):
        write_bundle(model, tmp_path / "model.pt", tmp_path / "bundle", LoweringOptions(), None, silent)
        with pytest.raises(UsageError, match=r"50x64 pixels: .*multiples of 8: .* 56x64 say"):
            verify(tmp_path / "bundle", tmp_path / "*.png", track=lambda items, *_: said.append("began") or items)
        assert said == []
        assert verify(tmp_path / "bundle", tmp_path / "a.png").failures(Gates()) == []
