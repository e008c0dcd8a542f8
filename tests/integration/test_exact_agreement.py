"""The agreement tool: every way of running an exact model is counted, and one wrong byte shows."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from odm_deploy.checkpoint import save_model
from odm_deploy.errors import UsageError
from odm_deploy.imaging.writing import write_image
from odm_deploy.quantization.exact.interpreter import interpret
from tests.exact_models import calibrated_exact
from tests.factories import random_images
from tests.tool_modules import load_tool

STRESS_BYTES, PHOTO_BYTES = 6 * 3 * 16 * 16, 3 * 40 * 44


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("exact_agreement")


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """Of the command: an exact EDSR x2, one photo, six stress images."""
    save_model(calibrated_exact("edsr"), tmp_path / "model.pt")
    write_image(tmp_path / "photo.png", random_images(20, 22)[0].transpose(1, 2, 0).astype(np.uint8))
    return [str(tmp_path / "model.pt"), "--images", str(tmp_path), "--stress", "6", "--side", "8", "--tile", "20"]


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def exit_code(tool: ModuleType, arguments: list[str]) -> object:
    with pytest.raises(SystemExit) as ended:
        tool.command(arguments, standalone_mode=False)
    return ended.value.code


def test_everything_that_runs_the_model_is_compared(tool, arguments, capsys: pytest.CaptureFixture[str]):
    assert exit_code(tool, arguments) == 0
    reached, *lines = capsys.readouterr().out.splitlines()
    assert "rounding ties, at least" in reached
    assert [line[:28].strip() for line in lines] == [
        *(name for name, _, _ in tool.TORCH),
        *tool.RUNTIMES,
        "onnxruntime, tiles of 20",
        "openvino, tiles of 20",
    ]
    everything, in_tiles = STRESS_BYTES + PHOTO_BYTES, PHOTO_BYTES
    assert [line[28:].split() for line in lines[:-2]] == [[str(everything), "bytes,", "0", "differ"]] * (len(lines) - 2)
    assert [line[28:].split() for line in lines[-2:]] == [[str(in_tiles), "bytes,", "0", "differ"]] * 2


def test_one_wrong_byte_is_counted(tool, arguments, capsys, monkeypatch):
    def with_a_fault(program, images, watch):
        right = interpret(program, images, watch)
        right[0, 0, 0, 0] ^= 1
        return right

    monkeypatch.setattr(tool, "interpret", with_a_fault)
    assert exit_code(tool, arguments) == 1
    # One batch is the photo, the other the stress images.
    assert "2 differ" in capsys.readouterr().out.splitlines()[1]


def test_tiles_too_small_are_refused_before_anything_is_compared(tool, arguments, capsys):
    with pytest.raises(UsageError, match="tiles of 16 pixels are too small"):
        tool.command([*arguments, "--tile", "16"], standalone_mode=False)
    assert "differ" not in capsys.readouterr().out
