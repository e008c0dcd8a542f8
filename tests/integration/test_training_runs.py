"""Whole training runs on a tiny network: resuming, stopping, diverging, and several processes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from odm_deploy.checkpoint import load_model
from odm_deploy.errors import InputError, MissingError, UsageError
from odm_deploy.networks.edsr import EDSR, EdsrConfig
from odm_deploy.quantization.cross_layer import SCALED_CHANNELS, scale_channels
from training.__main__ import command as training_command
from training.distributed import World
from training.loop.preparation import load_float_network
from training.loop.run import train
from training.methods.registry import method_names
from training.recipe_files import SHORTHANDS, load_recipe

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe for a tiny EDSR x2 on six small images; a few milliseconds an iteration."""
    torch.manual_seed(5)
    torch.save(EDSR(EdsrConfig(scale=2, features=6, blocks=2)).state_dict(), tmp_path / "weights.pt")
    images = tmp_path / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    for index in range(6):
        coarse = Image.fromarray(random.integers(0, 256, (7, 8, 3), dtype=np.uint8))
        coarse.resize((48, 40), Image.Resampling.BICUBIC).save(images / f"{index}.png")
    path = tmp_path / "recipe.toml"
    path.write_text(f"""
[network]
scale = 2
weights = "{tmp_path / "weights.pt"}"
[quantization]
body = "w3a3"
[method]
name = "odm_v2"
[data]
folders = ["{images}"]
patch = 8
validation_images = 2
calibration_batches = 2
[optimizer]
ema_decay = 0.9
[run]
iterations = 6
batch = 4
checkpoint_every = 3
validate_every = 4
log_every = 1
""")
    return path


def command(recipe: Path, out: Path, *overrides: str) -> list[str]:
    sets = [text for override in overrides for text in ("--set", override)]
    return [sys.executable, "-m", "training", str(recipe), "--out", str(out), *sets]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def run(recipe: Path, out: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(recipe, out, *overrides), capture_output=True, text=True, env=environment(), cwd=REPOSITORY, check=False
    )


def tensors(content: object, path: str = "") -> dict[str, torch.Tensor]:
    if isinstance(content, torch.Tensor):
        return {path: content}
    items = content.items() if isinstance(content, dict) else []
    return {key: value for name, item in items for key, value in tensors(item, f"{path}/{name}").items()}


def read(path: Path) -> dict[str, torch.Tensor]:
    return tensors(torch.load(path, weights_only=True))


def assert_same(first: Path, second: Path) -> None:
    ours, theirs = read(first), read(second)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 20
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_ends_with_the_same_bits(recipe, tmp_path, how):
    overrides = ("run.iterations=60", "run.checkpoint_every=2")
    straight = run(recipe, tmp_path / "straight", *overrides)
    assert straight.returncode == 0, straight.stderr
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        command(recipe, out, *overrides), stderr=subprocess.PIPE, text=True, env=environment(), cwd=REPOSITORY
    )
    while not (out / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(how)
    _, talk = process.communicate(timeout=60)
    assert not (out / "model.pt").exists(), "the run ended before it was stopped"
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert talk.splitlines()[-1].startswith("interrupted: after iteration ")
        assert "the same command resumes" in talk
        assert talk.count("interrupted") == 1
        assert "Traceback" not in talk
    resumed = run(recipe, out, *overrides)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at iteration" in resumed.stderr
    assert_same(tmp_path / "straight" / "last.pt", out / "last.pt")
    assert_same(tmp_path / "straight" / "model.pt", out / "model.pt")
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records if "loss" in record] == list(range(1, 61))


def test_a_finished_run_leaves_what_it_promises(recipe, tmp_path):
    model = train(load_recipe(recipe, []), tmp_path / "out", World())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "log.jsonl", "last.pt", "model.pt"}
    frozen = load_model(tmp_path / "out" / "model.pt")
    low = torch.rand(1, 3, 9, 11) * 255
    model.network.eval()
    with torch.no_grad():
        assert torch.equal(frozen(low), model(low))
    assert frozen.metadata["method"] == "odm_v2"
    assert frozen.metadata["recipe"]["run"]["iterations"] == 6


def test_training_lowers_the_loss(recipe, tmp_path):
    overrides = ["run.iterations=150", "optimizer.learning_rate=3e-3", "run.checkpoint_every=1000"]
    train(load_recipe(recipe, overrides), tmp_path / "out", World())
    records = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:5])


def test_finish_freezes_what_a_run_has_reached_and_lets_it_go_on(recipe, tmp_path):
    """Three of six iterations, frozen, then the other three: the end is that of an undisturbed run."""
    half, whole = (load_recipe(recipe, [f"run.iterations={n}", "data.validation_images=0"]) for n in (3, 6))
    train(whole, tmp_path / "straight", World())
    train(half, tmp_path / "out", World())
    (tmp_path / "out" / "model.pt").unlink()
    train(whole, tmp_path / "out", World(), finish=True)
    assert load_model(tmp_path / "out" / "model.pt").metadata["iterations"] == 3
    train(whole, tmp_path / "out", World())
    assert load_model(tmp_path / "out" / "model.pt").metadata["iterations"] == 6
    assert_same(tmp_path / "straight" / "last.pt", tmp_path / "out" / "last.pt")


def test_a_longer_run_does_not_pass_for_a_shorter_one(recipe, tmp_path):
    """Not `compare_methods.py`'s either, whose tables then called three iterations two."""
    longer, shorter = (load_recipe(recipe, [f"run.iterations={n}", "data.validation_images=0"]) for n in (3, 2))
    train(longer, tmp_path / "out", World())
    config = (tmp_path / "out" / "config.json").read_bytes()
    with pytest.raises(UsageError, match=r"holds 3 iterations: run\.iterations is 2"):
        train(shorter, tmp_path / "out", World())
    assert (tmp_path / "out" / "config.json").read_bytes() == config
    train(longer, tmp_path / "out", World(), finish=True)
    assert load_model(tmp_path / "out" / "model.pt").metadata["iterations"] == 3


def test_finish_needs_no_recipe_because_the_run_has_its_own(recipe, tmp_path):
    train(load_recipe(recipe, ["run.iterations=2", "data.validation_images=0"]), tmp_path / "out", World())
    (tmp_path / "out" / "model.pt").unlink()
    done = CliRunner().invoke(training_command, ["--out", str(tmp_path / "out"), "--finish"])
    assert done.exit_code == 0, done.output
    assert load_model(tmp_path / "out" / "model.pt").metadata["iterations"] == 2
    missing = CliRunner().invoke(training_command, ["--out", str(tmp_path / "none"), "--finish"])
    assert isinstance(missing.exception, InputError)
    assert "none is no folder of a training run: it holds no config.json" in str(missing.exception)
    nothing = CliRunner().invoke(training_command, ["--out", str(tmp_path / "none")])
    assert "quickstart.toml" in str(nothing.exception)


def test_the_quickstart_trains_on_one_folder_of_photos(recipe, tmp_path, monkeypatch):
    monkeypatch.delenv("ODM_DATA", raising=False)
    monkeypatch.delenv("ODM_WEIGHTS", raising=False)
    quickstart = REPOSITORY / "training" / "recipes" / "quickstart.toml"
    small = ["network.scale=2", "data.patch=8", "run.iterations=2", "data.validation_images=1"]
    places = [f"data.folders={recipe.parent / 'images'}", f"network.weights={recipe.parent / 'weights.pt'}"]
    train(load_recipe(quickstart, [*small, *places]), tmp_path / "out", World())
    assert (tmp_path / "out" / "model.pt").exists()


@pytest.mark.parametrize(
    ("override", "variable", "setting"),
    [
        ("data.folders=['{data}/train/T91']", "ODM_DATA", "data.folders"),
        ("network.weights='{weights}/edsr.pt'", "ODM_WEIGHTS", "network.weights"),
    ],
)
@pytest.mark.parametrize("is_set", [True, False])
def test_what_is_not_there_names_the_variable_and_the_setting(
    recipe, tmp_path, monkeypatch, override, variable, setting, is_set
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "/nowhere") if is_set else monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InputError) as caught:
        train(load_recipe(recipe, [override]), tmp_path / "out", World())
    line = str(caught.value)
    assert f"set {variable} to the folder" in line
    assert f"--set {setting}=PATH" in line
    assert ("/nowhere, from" if is_set else "is not set") in line
    assert not (tmp_path / "out").exists()


def test_there_must_be_something_to_finish(recipe, tmp_path):
    with pytest.raises(UsageError, match="nothing to finish"):
        train(load_recipe(recipe, []), tmp_path / "out", World(), finish=True)


@pytest.mark.parametrize(
    ("value", "telling"),
    [
        (float("nan"), r"diverged at iteration 3: the loss is nan; the first NaN or infinity leaves body\.1\.body\.0;"),
        # A quantizer clips infinity, so that the output stays finite; the mismatch's gradient does not.
        (float("inf"), r"diverged at iteration 3: the gradient of \S+ is not finite"),
    ],
)
def test_divergence_names_iteration_and_layer_and_keeps_the_state(recipe, tmp_path, value, telling):
    out = tmp_path / "out"
    train(load_recipe(recipe, ["run.iterations=3"]), out, World())
    sound = (out / "last.pt").read_bytes()
    state = torch.load(out / "last.pt", weights_only=True)
    state["model"]["body.1.body.0.bias"][0] = value
    torch.save(state, out / "last.pt")
    with pytest.raises(InputError, match=telling):
        train(load_recipe(recipe, ["run.iterations=6"]), out, World())
    (out / "last.pt").write_bytes(sound)
    train(load_recipe(recipe, ["run.iterations=6"]), out, World())
    assert load_model(out / "model.pt").metadata["iterations"] == 6


def test_another_recipe_cannot_take_over_a_folder(recipe, tmp_path):
    train(load_recipe(recipe, []), tmp_path / "out", World())
    with pytest.raises(UsageError, match=r"run\.batch was 4, now 2"):
        train(load_recipe(recipe, ["run.batch=2"]), tmp_path / "out", World())


@pytest.mark.parametrize(
    ("overrides", "telling", "code"),
    [
        (["data.patch=21"], "is too small.*48x40 against a target patch of 42x42", 1),
        (["data.patch=21", "data.small_images=skip"], "all 4 images are smaller", 1),
        (["data.validation_images=6"], "cannot hold back 6 images", 1),
        (["data.folders=['/dev/null/nowhere']"], "/dev/null/nowhere", 1),
        (["network.scale=4"], "weights of EDSR x2", 1),
        (["method.lambda_m=1"], "unknown key method.lambda_m", 2),
        (["method.name=none"], "no method 'none'.*odm_v2", 2),
        (["quantization.body=w9a4"], "9 bits", 2),
        (["run.batches=3"], "unknown key run.batches.*did you mean batch", 2),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(recipe, tmp_path, overrides, telling, code):
    with pytest.raises((InputError, UsageError), match=telling) as caught:
        train(load_recipe(recipe, overrides), tmp_path / "out", World())
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["odm_v2", "ddtb"])
def test_an_equalized_start_is_the_same_network_on_evener_channels(recipe, tmp_path, method):
    plain = load_float_network(load_recipe(recipe, []))
    settings = ["network.equalize=true", f"method={method}", "optimizer.schedule=constant"]
    train(load_recipe(recipe, [*settings, "run.iterations=2"]), tmp_path / "out", World())
    train(load_recipe(recipe, [*settings, "run.iterations=4"]), tmp_path / "out", World())
    model = load_model(tmp_path / "out" / "model.pt")
    found = load_float_network(load_recipe(recipe, []))
    image = torch.rand(1, 3, 12, 12) * 255
    scale_channels(found, model.metadata[SCALED_CHANNELS])
    with torch.no_grad():
        assert torch.allclose(found(image), plain(image), atol=1e-2)
    # Trained for four steps at 1e-4, weights are near those of the scaled float network, and not of the plain one.
    name = "body.0.body.0"
    trained, scaled, unscaled = (net.get_submodule(name).bias for net in (model.network, found, plain))
    assert (trained - scaled).abs().max() < 0.01
    assert (scaled - unscaled).abs().max() > 0.01


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_before_anything_is_written(recipe, tmp_path):
    done = CliRunner().invoke(training_command, [str(recipe), "--gpu", "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, MissingError)
    assert "leave out --gpu" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_the_help_names_every_method_and_short_form():
    shown = CliRunner().invoke(training_command, ["--help"]).output
    assert [name for name in (*method_names(), *SHORTHANDS) if not re.search(rf"\b{name}\b", shown)] == []


def test_the_command_line_ends_with_one_line_and_the_exit_code(recipe, tmp_path):
    result = run(recipe, tmp_path / "out", "method.name=none")
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: no method 'none'")
    assert "Traceback" not in result.stderr


def test_two_processes_train_what_one_trains(recipe, tmp_path):
    """The cooperative rule compares gradients averaged over processes, and the mismatch norm spans the global batch."""
    overrides = ("method.mismatch_weight=1e-2", "run.select=last")
    one = run(recipe, tmp_path / "one", *overrides)
    assert one.returncode == 0, one.stderr
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # What the launcher starts is the command itself, without its interpreter.
    two = subprocess.run(
        [*torchrun, *command(recipe, tmp_path / "two", *overrides)[1:]],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment(),
        check=False,
    )
    assert two.returncode == 0, two.stderr
    assert two.stderr.count("wrote ") == 1
    ours, theirs = read(tmp_path / "one" / "last.pt"), read(tmp_path / "two" / "last.pt")
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if key.startswith("/model/"):
            # Adam's first steps amplify the rounding of differently ordered sums; a step is 1e-4 or 1e-3.
            assert torch.allclose(value, theirs[key], atol=2e-5), key


def test_a_full_disk_is_one_line_and_leaves_the_state_before(recipe, tmp_path):
    out = tmp_path / "out"
    train(load_recipe(recipe, ["run.iterations=3"]), out, World())
    before = (out / "last.pt").read_bytes()
    # No file may grow beyond 16 KiB, as on a disk that fills up while last.pt is written.
    limited = ["bash", "-c", 'ulimit -f 16; exec "$@"', "bash", *command(recipe, out, "run.iterations=6")]
    result = subprocess.run(limited, capture_output=True, text=True, env=environment(), cwd=REPOSITORY, check=False)
    assert result.returncode == 1
    assert "error: cannot write" in result.stderr
    assert "Traceback" not in result.stderr
    assert (out / "last.pt").read_bytes() == before
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_a_terminal_gets_a_bar(recipe, tmp_path):
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            command(recipe, tmp_path / "out"),
            stderr=slave,
            env={**environment(), "TERM": "xterm", "COLUMNS": "100"},
            cwd=REPOSITORY,
        )
        os.close(slave)
        shown = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # a pty ends with an error once its last writer is gone
                break
            if not piece:
                break
            shown += piece
        assert process.wait(timeout=60) == 0
    finally:
        os.close(master)
    text = shown.decode()
    assert "6/6" in text
    assert "validation at 4" in text
    assert "ETA" not in text


def test_a_run_tells_of_conflicts_mismatch_and_ranges_and_they_can_be_drawn(recipe, tmp_path):
    board = tmp_path / "out" / "tensorboard"
    settings = load_recipe(recipe, ["method.mismatch_every=2"])
    train(settings, tmp_path / "out", World(), tensorboard=True)
    records = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert ["mismatch" in record for record in steps] == [False, True] * 3
    assert all(0 <= record["conflict_tensors"] <= 1 for record in steps[1::2])
    validations = [record for record in records if "ranges" in record]
    assert [record["iteration"] for record in validations] == [4, 6]
    assert all(first < last for first, last in validations[0]["ranges"].values())

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(board)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert "first_level/body.0.body.0" in events.Tags()["scalars"]

    figure = tmp_path / "curves.png"
    tool = [sys.executable, "tools/plot_training.py", str(tmp_path / "out"), "-o", str(figure)]
    subprocess.run(tool, cwd=REPOSITORY, env=environment(), check=True, capture_output=True)
    with Image.open(figure) as drawn:
        assert drawn.size[0] > 800
    failed = subprocess.run(
        [*tool[:2], str(tmp_path), *tool[3:]], cwd=REPOSITORY, env=environment(), capture_output=True
    )
    assert failed.returncode == 1
    assert b"name a run's folder" in failed.stderr


@pytest.mark.parametrize("method", sorted(set(method_names()) - {"odm_v2"}))
def test_every_method_trains_validates_and_resumes(recipe, tmp_path, method):
    text = recipe.read_text().replace('name = "odm_v2"', f'name = "{method}"')
    recipe.write_text(text)
    overrides = ["method.gate_start=3"] if method == "ddtb" else []
    train(
        load_recipe(recipe, [*overrides, "optimizer.schedule=constant", "run.iterations=3"]), tmp_path / "out", World()
    )
    train(load_recipe(recipe, [*overrides, "optimizer.schedule=constant"]), tmp_path / "out", World())
    records = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records if "validation_psnr_db" in record] == [3, 4, 6]


def test_gates_are_removed_on_request_and_the_run_tells_what_that_costs(recipe, tmp_path, capsys):
    recipe.write_text(recipe.read_text().replace('name = "odm_v2"', 'name = "ddtb"\ngate_start = 2'))
    out = tmp_path / "out"
    train(load_recipe(recipe, []), out, World())
    assert any(layer.gate for layer in load_model(out / "model.pt").layers.values())
    train(load_recipe(recipe, ["method.remove_gates=true"]), out, World(), finish=True)
    assert "dB on the validation images" in capsys.readouterr().err
    assert not any(layer.gate for layer in load_model(out / "model.pt").layers.values())
