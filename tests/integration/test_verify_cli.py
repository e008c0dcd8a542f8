"""`odm-deploy verify`: the honest export agrees, gates set the exit code, and stdout holds the report alone."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.proof.parity import FLOOR_DRAWS
from tests.command_line import run_cli
from tests.factories import exact_model, model_on_ties, tiny_model

KEYS = {
    "identical_pixels", "max_lsb", "psnr_between_db", "reference", "runtime", "layers", "noise_floor", "passed",
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tiny_set):
    return tiny_set / "LR_bicubic" / "X2"


def copy_of(bundle, folder):
    shutil.copytree(bundle, folder)
    return folder


def test_honest_export_agrees(tiny_bundle, tiny_checkpoint, images):
    outcome = run_cli("verify", tiny_bundle, "--images", images, "--json")
    assert outcome.code == 0, outcome.stderr
    document = outcome.document
    assert set(document) >= KEYS
    assert document["passed"] is True
    assert document["failures"] == []
    assert document["images"] == 2
    assert document["identical_pixels"] > 0.99
    assert document["max_lsb"] <= 1
    assert document["runtime_info"]["runtime"] == "onnxruntime"
    # Ground truth lies beside the images, where benchmark sets have it.
    for side in ("reference", "runtime"):
        assert 5 < document[side]["psnr_y_db"] < 60
        assert 0 < document[side]["ssim_y"] < 1
    floor = document["noise_floor"]
    draw_keys = {"identical_pixels", "max_lsb", "psnr_between_db"}
    assert set(floor) == {*draw_keys, "furthest_psnr_between_db", "draws"}
    # Sums round on these scales, so the floor is drawn several times, and the furthest draw is the floor.
    assert [set(draw) for draw in floor["draws"]] == [draw_keys] * FLOOR_DRAWS
    # JSON has no infinity: a draw without any difference is None.
    apart = [draw["psnr_between_db"] for draw in (floor, *floor["draws"]) if draw["psnr_between_db"] is not None]
    assert floor["furthest_psnr_between_db"] == min(apart, default=None)
    named = [layer["name"] for layer in document["layers"]]
    assert set(load_model(tiny_checkpoint).layers) <= set(named)
    assert all({"name", "flip_rate"} <= set(layer) for layer in document["layers"])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_exact_models_are_identical_to_the_bit(runtime, images, tmp_path):
    save_model(exact_model(), tmp_path / "model.pt")
    assert run_cli("export", tmp_path / "model.pt", "--no-engine").code == 0
    gates = ("--max-lsb", "0", "--min-identical", "1")
    outcome = run_cli("verify", tmp_path / "model", "--images", images, "--runtime", runtime, *gates, "--json")
    assert outcome.code == 0, outcome.stderr
    assert (outcome.document["identical_pixels"], outcome.document["max_lsb"]) == (1.0, 0)
    # Infinite PSNR has no JSON number.
    assert outcome.document["psnr_between_db"] is None
    assert {layer["flip_rate"] for layer in outcome.document["layers"]} == {0.0}
    # No sum rounds, so jittered roundings would be no legitimate result of this model.
    assert outcome.document["noise_floor"]["draws"] == []


def test_ties_that_openvino_breaks_its_own_way_are_told_and_accepted(images, tmp_path):
    save_model(model_on_ties(), tmp_path / "model.pt")
    assert run_cli("export", tmp_path / "model.pt", "--no-engine").code == 0
    verify = ("verify", tmp_path / "model", "--images", images, "--runtime", "openvino")
    outcome = run_cli(*verify, "--json")
    assert outcome.code == 0, outcome.stderr
    # The draws break ties, too, though no sum of this model rounds.
    assert len(outcome.document["noise_floor"]["draws"]) == FLOOR_DRAWS
    layers = outcome.document["layers"]
    assert max(layer["furthest_from_tie_steps"] for layer in layers) < 1e-4
    flips = sum(layer["flip_rate"] * layer["codes"] for layer in layers)
    assert sum(layer["tie_flip_rate"] * layer["codes"] for layer in layers) > 0.9 * flips
    plant_wrong_codes(tmp_path / "model" / "model.cpu.onnx", "body.0.body.0")
    refused = run_cli(*verify)
    assert refused.code == 3
    assert "worst body.0.body.2" in refused.stderr
    # Said once, and not beside the tables as well.
    assert "does NOT" not in refused.stdout
    assert "steps from a tie" in refused.stderr


def test_people_get_tables_and_one_verdict(tiny_bundle, images, tmp_path):
    outcome = run_cli("verify", tiny_bundle, "--images", images, "--max-images", 1, "--markdown", tmp_path / "r.md")
    assert outcome.code == 0
    assert "onnxruntime computes the reference" in outcome.stdout
    assert "body." in outcome.stdout
    assert (tmp_path / "r.md").read_text().startswith("**onnxruntime computes the reference")


def plant_wrong_codes(path, layer):
    """Negate the weight codes of one output channel of `layer`."""
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.startswith(f"{layer}.codes"))
    codes = numpy_helper.to_array(tensor).copy()
    codes[2] = -codes[2]
    tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))
    onnx.save(model, path)


def test_planted_error_fails_and_the_layer_behind_it_is_the_worst(tiny_bundle, images, tmp_path):
    bundle = copy_of(tiny_bundle, tmp_path / "bundle")
    plant_wrong_codes(bundle / "model.onnx", "body.0.body.0")
    outcome = run_cli("verify", bundle, "--images", images, "--json")
    assert outcome.code == 3
    assert outcome.document["passed"] is False
    assert any("worst body.0.body.2" in failure for failure in outcome.document["failures"])
    worst = max(outcome.document["layers"], key=lambda layer: layer["flip_rate"])
    # The codes that convolution produces are those its successor's quantizer sees.
    assert worst["name"] == "body.0.body.2"
    assert worst["flip_rate"] > 0.01
    assert [layer["name"] for layer in outcome.document["layers"] if layer["flip_rate"] > 1e-3] == [worst["name"]]


def change(path, change_of):
    """Replace initializers of a graph: name -> what becomes of its values."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name in change_of:
            values = numpy_helper.to_array(tensor)
            changed = np.asarray(change_of[tensor.name](values), values.dtype).reshape(values.shape)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, path)


def test_codes_beyond_the_grid_are_no_ties(images, tmp_path):
    save_model(tiny_model(4), tmp_path / "model.pt")
    bundle, layer = tmp_path / "bundle", "body.1.body.0"
    assert run_cli("export", tmp_path / "model.pt", "-o", bundle, "--no-engine").code == 0
    step = load_model(tmp_path / "model.pt").layers[layer].grid.scale
    change(
        bundle / "model.onnx",
        {f"{layer}.max": lambda bound: bound - step, f"{layer}.min": lambda bound: bound + step},
    )
    outcome = run_cli("verify", bundle, "--against", tmp_path / "model.pt", "--images", images, "--json")
    assert outcome.code == 3
    assert any(f"worst {layer}" in failure and "outside" in failure for failure in outcome.document["failures"])


@pytest.mark.parametrize("options", [(), ("--no-layers",), ("--max-lsb", 255)])
def test_another_graph_than_the_manifests_is_never_accepted(tiny_bundle, images, tmp_path, options):
    bundle = copy_of(tiny_bundle, tmp_path / "bundle")
    change(bundle / "model.onnx", {"body.0.body.0.scale_w": lambda scale: np.nextafter(scale, np.float32(9))})
    outcome = run_cli("verify", bundle, "--images", images, "--json", *options)
    assert outcome.code == 3
    assert outcome.document["changed"] is True
    assert any("SHA-256" in failure for failure in outcome.document["failures"])


def test_each_gate_sets_the_exit_code(tiny_bundle, tiny_checkpoint, images, tmp_path):
    # Outside of the bundle, where no manifest says that it is another file.
    shutil.copy(tiny_bundle / "model.onnx", tmp_path / "alone.onnx")
    plant_wrong_codes(tmp_path / "alone.onnx", "body.0.body.0")
    verify = ("verify", tmp_path / "alone.onnx", "--against", tiny_checkpoint, "--images", images, "--no-layers")
    measured = run_cli(*verify, "--json").document
    assert measured["layers"] == []
    drop = measured["reference"]["psnr_y_db"] - measured["runtime"]["psnr_y_db"]
    for gate, passing, failing in (
        ("--max-lsb", measured["max_lsb"], measured["max_lsb"] - 1),
        ("--min-identical", measured["identical_pixels"], measured["identical_pixels"] + 1e-6),
        ("--max-psnr-drop", drop + 1e-6, drop - 1e-6),
    ):
        assert run_cli(*verify, gate, passing).code == 0, gate
        refused = run_cli(*verify, gate, failing)
        assert refused.code == 3, gate
        assert "does NOT compute the reference" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1


def test_other_checkpoint_than_the_bundles_is_refused(tiny_bundle, images, tmp_path):
    save_model(tiny_model(4), tmp_path / "other.pt")
    outcome = run_cli("verify", tiny_bundle, "--against", tmp_path / "other.pt", "--images", images)
    assert outcome.code == 1
    assert "is not what" in outcome.stderr
    assert "SHA-256" in outcome.stderr


def test_bare_onnx_file_needs_its_reference_named(tiny_bundle, tiny_checkpoint, images, tmp_path):
    shutil.copy(tiny_bundle / "model.onnx", tmp_path / "alone.onnx")
    outcome = run_cli("verify", tmp_path / "alone.onnx", "--images", images)
    assert outcome.code == 2
    assert "--against" in outcome.stderr
    outcome = run_cli("verify", tmp_path / "alone.onnx", "--against", tiny_checkpoint, "--images", images)
    assert outcome.code == 0, outcome.stderr


def test_uint8_bundles_are_verified_on_the_same_bytes(tiny_checkpoint, images, tmp_path):
    options = ("--no-engine", "--io", "uint8", "--layout", "nhwc")
    assert run_cli("export", tiny_checkpoint, "-o", tmp_path / "bundle", *options).code == 0
    outcome = run_cli("verify", tmp_path / "bundle", "--images", images, "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.document["max_lsb"] <= 1
    assert np.mean([layer["flip_rate"] for layer in outcome.document["layers"]]) < 1e-3


def test_half_precision_bundles_are_held_to_a_gate(tiny_checkpoint, images, tmp_path):
    assert run_cli("export", tiny_checkpoint, "-o", tmp_path / "half", "--no-engine", "--precision", "fp16").code == 0
    gates = ("--max-psnr-drop", "0.05", "--max-lsb", "2", "--no-layers")
    outcome = run_cli("verify", tmp_path / "half", "--images", images, *gates, "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.document["identical_pixels"] < 1
    outcome = run_cli("verify", tmp_path / "half", "--images", images)
    assert outcome.code == 3
    assert "; what is not int8 is fp16 in this graph, which moves codes: say how far by --max-lsb" in outcome.stderr


def test_a_bundle_finds_its_model_from_any_folder_and_when_both_are_moved(tmp_path, monkeypatch, images):
    save_model(tiny_model(8), tmp_path / "a" / "model.pt")
    monkeypatch.chdir(tmp_path / "a")
    assert run_cli("export", "model.pt", "-o", "out/bundle", "--no-engine").code == 0
    monkeypatch.chdir(tmp_path)
    options = ("--images", images, "--no-layers", "--runtime", "onnxruntime")
    assert run_cli("verify", "a/out/bundle", *options).code == 0
    (tmp_path / "a").rename(tmp_path / "b")
    assert run_cli("verify", "b/out/bundle", *options).code == 0
    assert run_cli("verify", "b/out/bundle/model.onnx", *options).code == 0
    (tmp_path / "b/model.pt").unlink()
    gone = run_cli("verify", "b/out/bundle", *options)
    assert gone.code == 1
    assert "there is no b/model.pt; name it: --against model.pt" in gone.stderr
