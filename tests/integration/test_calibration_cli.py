"""`python -m calibration` as a user calls it; once as a process, elsewhere in this one, which saves importing torch."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from odm_deploy.checkpoint import FORMAT, load_model
from odm_deploy.cli.quantize import command
from odm_deploy.imaging.reading import read_rgb
from odm_deploy.networks.registry import build_network, network_from_state_dict
from odm_deploy.terminal import run
from tests.inputs import edsr_weights

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return edsr_weights(tmp_path_factory.mktemp("weights") / "edsr.pt", scale=4)


@pytest.fixture(scope="module")
def images(samples) -> Path:
    return samples / "HR"


@dataclass(frozen=True)
class Done:
    """How a call ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def call(monkeypatch, capsys):
    """Call `python -m calibration` with what every call needs, then `more`: later options override earlier ones."""

    def run_command(weights: Path, images: Path, output: Path, *more: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["calibration", *arguments(weights, images, output), *more])
        with pytest.raises(SystemExit) as ended:
            run(command, "python -m calibration")
        return Done(ended.value.code, *capsys.readouterr())

    return run_command


def arguments(weights: Path, images: Path, output: Path) -> list[str]:
    fixed = ["--network", "edsr", "--scale", "4", "--bits", "4"]
    return [str(weights), *fixed, "--images", str(images), "-o", str(output)]


def process(*more: str) -> subprocess.CompletedProcess[str]:
    command_line = [sys.executable, "-m", "calibration", *more]
    return subprocess.run(command_line, capture_output=True, text=True, cwd=REPOSITORY, timeout=300, check=False)


def test_makes_a_model_that_upscales_like_the_float_network(tmp_path, weights, images, samples):
    output = tmp_path / "deep" / "model.pt"
    done = process(*arguments(weights, images, output), "--bits", "8", "--json", "--crop", "32", "--profile", "paper")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["model"] == str(output)
    assert (summary["network"], summary["scale"], summary["bits"], summary["method"]) == ("edsr", 4, "8", "mse")
    assert summary["images"] == len(list(images.glob("*.png")))
    assert [layer["name"] for layer in summary["layers"]] == [f"body.{i}.body.{j}" for i in (0, 1) for j in (0, 2)]
    assert set(summary["layers"][0]) >= {"name", "lower", "upper", "bits", "zero_point", "clipped_share", "mismatch"}
    assert summary["seconds"] > 0

    model = load_model(summary["model"])
    assert model.metadata["weights_file"] == "edsr.pt"
    network = network_from_state_dict("edsr", torch.load(weights, weights_only=True), 4)
    low = read_rgb(next((samples / "LR_bicubic" / "X4").glob("*.png")))[:32, :32]
    x = torch.from_numpy(low.transpose(2, 0, 1)[None].astype(np.float32))
    with torch.no_grad():
        difference = (model(x) - network(x)).abs()
    assert 0 < float(difference.mean()) < 0.5


def test_every_option_has_its_effect(call, tmp_path, weights, samples):
    output = tmp_path / "model.pt"
    done = call(
        *(weights, samples / "LR_bicubic" / "X4", output),
        *("--lr", "--crop", "24", "--max-images", "2"),
        *("--method", "percentile", "--percentile", "99", "--weight-scales", "max", "--per-layer-weights", "--free"),
        *("--head", "8", "--body-end", "w6a7", "--tail", "5", "--layer", "tail.1=float", "--layer", "body.0.*=3"),
        *("--set", "residual_scale=0.5"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "percentile ranges from 2 images" in done.stderr
    model = load_model(output)
    widths = {name: (layer.weight_bits, layer.grid.bits) for name, layer in model.layers.items()}
    assert widths == {
        "head.0": (8, 8),
        "body.0.body.0": (3, 3),
        "body.0.body.2": (3, 3),
        "body.1.body.0": (4, 4),
        "body.1.body.2": (4, 4),
        "body.2": (6, 7),
        "tail.0.0": (5, 5),
        "tail.0.2": (5, 5),
    }
    assert all(layer.grid.is_free and layer.scale.shape == (1,) for layer in model.layers.values())
    assert model.network.config.residual_scale == 0.5


def test_the_old_spelling_of_weight_scales_works_and_says_so(call, weights, images, tmp_path):
    done = {
        name: call(weights, images, tmp_path / f"{name}.pt", f"--{name}", "max")
        for name in ("weights", "weight-scales")
    }
    assert [each.returncode for each in done.values()] == [0, 0]
    assert "--weights max is spelled --weight-scales max now" in done["weights"].stderr.splitlines()
    assert "is spelled" not in done["weight-scales"].stderr
    first, second = (load_model(tmp_path / f"{name}.pt") for name in done)
    for name, layer in first.layers.items():
        assert torch.equal(layer.scale, second.layers[name].scale)


def broken_files(folder: Path) -> dict[str, Path]:
    """Weights that are none, by the reason their error names."""
    sound = build_network("edsr", {"scale": 4, "features": 4, "blocks": 1}).state_dict()
    files = {}
    for reason, state in {
        "not an EDSR state dict": {"a": torch.zeros(3)},
        "NaN or infinite": {**sound, "head.0.weight": torch.full((4, 3, 3, 3), float("nan"))},
        "1 missing": {key: value for key, value in sound.items() if key != "body.1.bias"},
    }.items():
        files[reason] = folder / f"{len(files)}.pt"
        torch.save(state, files[reason])
    for reason, content in {
        "is not a torch file": b"hello\n",
        "the file is empty": b"",
        "damaged or truncated": files["1 missing"].read_bytes()[:2000],
    }.items():
        files[reason] = folder / f"{len(files)}.pt"
        files[reason].write_bytes(content)
    return files


def assert_refused(done, output: Path, code: int, reason: str) -> None:
    assert done.returncode == code, done.stderr
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not output.exists()
    assert [path.name for path in output.parent.iterdir() if path.name.startswith(f".{output.stem}")] == []


def test_broken_weights_are_refused_in_one_line_and_nothing_is_left_behind(call, tmp_path, images):
    output = tmp_path / "out"
    for reason, path in broken_files(tmp_path).items():
        done = call(path, images, output)
        assert_refused(done, output, 1, reason)
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "code", "reason"),
    [
        (["--scale", "2"], 1, "these are weights of EDSR x4"),
        (["--bits", "17"], 2, "no quantization at 17 bits"),
        (["--bits", "float"], 2, "quantizes nothing"),
        (["--layer", "neck=8"], 2, "--layer neck matches nothing"),
        (["--layer", "head.0"], 2, "--layer head.0 is not KEY=VALUE"),
        (["--set", "colour=red"], 2, "unknown keys ['colour']"),
        (["--set", "residual_scale=banana"], 2, "residual_scale = 'banana' is not a number"),
        (["--method", "minmax", "--percentile", "99"], 2, "--percentile says nothing about --method minmax"),
        (["--profile", "best"], 2, "no profile 'best'"),
        (["--network", "vgg"], 2, "no network 'vgg'"),
        (["--images", "nowhere"], 1, "nowhere"),
        (["--frobnicate"], 2, "--frobnicate"),
    ],
)
def test_wrong_calls_are_refused_in_words(call, tmp_path, weights, images, more, code, reason):
    assert_refused(call(weights, images, tmp_path / "out", *more), tmp_path / "out", code, reason)


def test_what_is_no_image_is_refused(call, tmp_path, weights):
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs" / "pic.png").write_bytes(bytes(range(200)))
    done = call(weights, tmp_path / "imgs", tmp_path / "out")
    assert_refused(done, tmp_path / "out", 1, "pic.png")


def test_a_process_that_fails_ends_with_the_documented_code(tmp_path, weights, images):
    done = process(*arguments(weights, images, tmp_path / "out"), "--bits", "17")
    assert_refused(done, tmp_path / "out", 2, "no quantization at 17 bits")


def test_a_folder_is_not_overwritten(call, tmp_path, weights, images):
    done = call(weights, images, tmp_path)
    assert done.returncode == 2
    assert f"name a file: -o {tmp_path / 'model.pt'}" in done.stderr


def test_an_older_model_survives_a_failed_call(call, tmp_path, weights, images):
    output = tmp_path / "model.pt"
    torch.save({"format": FORMAT}, output)
    before = output.read_bytes()
    assert call(weights, images, output, "--scale", "3").returncode == 1
    assert output.read_bytes() == before


def test_words_about_what_it_cost_import_no_onnx():
    code = "import sys, odm_deploy.tuning.text; sys.exit('onnx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_imports_no_torch():
    code = (
        "import sys; from odm_deploy.cli.quantize import command; command(['--help'], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--percentile" in done.stdout
