"""`from odm_deploy import verify`: the proof as a call, without the command."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import odm_deploy
from odm_deploy import InputError, UsageError, VerifyOptions, verify
from odm_deploy.proof.parity_report import Gates, ParityReport


def test_the_name_is_the_function_and_costs_nothing_before_it_is_asked_for():
    code = "import odm_deploy, sys; assert 'torch' not in sys.modules; from odm_deploy import verify; verify.__call__"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert inspect.isfunction(odm_deploy.verify)
    assert all(name in verify.__doc__ for name in ("Args:", "Raises:", "bundle:", "images:", "GateError"))
    assert all(field in VerifyOptions.__dataclass_fields__ for field in ("against", "truth", "runtime", "layers"))


def test_a_proof_is_a_report_and_nothing_is_printed(tiny_bundle, tiny_set, capsys):
    tracked, said = [], []

    def track(items, total, stage=""):
        tracked.append(total)
        return iter(items)

    options = VerifyOptions(runtime="onnxruntime", max_images=1, layers=False)
    report = verify(tiny_bundle, tiny_set / "LR_bicubic/X2", options, say=said.append, track=track)
    assert isinstance(report, ParityReport)
    assert (report.images, report.layers, report.failures(Gates())) == (1, [], [])
    assert report.to_dict(Gates())["reference"]["psnr_y_db"] is not None
    assert (tracked, said, capsys.readouterr()) == ([1], [], ("", ""))


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
