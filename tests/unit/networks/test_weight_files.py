"""Files of weights as people have them: wrappers, prefixes, averages, formats."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from odm_deploy.errors import InputError
from odm_deploy.networks.weight_files import check_finite, read_weights

STATE = {"head.weight": torch.randn(4, 3, 3, 3), "head.bias": torch.randn(4), "model.0.weight": torch.randn(3, 4, 1, 1)}
AVERAGE = {key: value + 1 for key, value in STATE.items()}


def prefixed(prefix, state=STATE):
    return {f"{prefix}{key}": value for key, value in state.items()}


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def readings(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    return read_weights(tmp_path / "w.pth")


PLAIN = {
    "plain": STATE,
    "BasicSR": {"params": STATE},
    "Lightning": {"state_dict": prefixed("model."), "epoch": 3, "global_step": 9, "callbacks": {}},
    "Lightning, net": {"state_dict": prefixed("net.")},
    "netG": {"state_dict": prefixed("netG.")},
    "generator": prefixed("generator."),
    "with a discriminator": {**prefixed("generator."), "discriminator.0.weight": torch.zeros(3)},
    "with a loss": {"state_dict": {**prefixed("model."), "loss.vgg.0.weight": torch.zeros(3)}},
    "with its optimizer": {"model": STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "lr": 0.1}},
    "nested": {"model": {"state_dict": STATE}},
    "DataParallel": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "both": prefixed("module._orig_mod."),
    "a compiled part": {key.replace("head.", "head._orig_mod."): value for key, value in STATE.items()},
    "two prefixes": {"state_dict": prefixed("module.model.")},
    "any prefix": prefixed("my_sr_network."),
    "any name": {"weights of june": STATE},
    "with counters": {**prefixed("module."), "step": torch.tensor(7)},
    "with a number": {**STATE, "iteration": 1000},
}
AVERAGED = {
    "BasicSR": {"params": STATE, "params_ema": AVERAGE},
    "mmagic": {
        "meta": {"iter": 1},
        "state_dict": {
            **prefixed("generator."),
            **prefixed("generator_ema.", AVERAGE),
            "step_counter": torch.tensor(1),
        },
    },
    "ema": {"model": STATE, "ema": AVERAGE},
    "ema_state_dict": {"state_dict": STATE, "ema_state_dict": AVERAGE},
    "model_ema": {"model": STATE, "model_ema": {"module": AVERAGE}},
    "Lightning": {"state_dict": {**prefixed("model."), **prefixed("ema_model.module.", AVERAGE)}},
    "DataParallel": {"state_dict": {**prefixed("module.generator."), **prefixed("module.generator_ema.", AVERAGE)}},
}


@pytest.mark.parametrize("wrapped", PLAIN.values(), ids=PLAIN)
def test_wrappers_come_off(wrapped, tmp_path):
    assert any(same(reading, STATE) for reading in readings(wrapped, tmp_path))


@pytest.mark.parametrize("wrapped", AVERAGED.values(), ids=AVERAGED)
def test_averages_come_before_what_they_average(wrapped, tmp_path):
    found = readings(wrapped, tmp_path)
    average = next(index for index, reading in enumerate(found) if same(reading, AVERAGE))
    assert not any(same(reading, STATE) for reading in found[:average])


def test_torchs_own_average_is_read(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 3, 1))
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn())
    assert any(same(reading, network.state_dict()) for reading in readings(averaged.state_dict(), tmp_path))


def test_the_first_reading_is_the_most_literal(tmp_path):
    old_esrgan = prefixed("model.")
    first, *_ = readings(old_esrgan, tmp_path)
    assert same(first, old_esrgan)


def test_safetensors_are_known_by_their_content(tmp_path):
    for name in ("w.safetensors", "w.pth"):
        save_file(STATE, tmp_path / name)
        assert same(read_weights(tmp_path / name)[0], STATE)
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "w.pth").read_bytes()[:-40])
    with pytest.raises(InputError, match=r"cannot read .*short\.safetensors"):
        read_weights(tmp_path / "short.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_becomes_float32_and_integers_stay(dtype, tmp_path):
    state = {"a.weight": STATE["head.bias"].to(dtype), "a.index": torch.arange(3)}
    first, *_ = readings(state, tmp_path)
    assert first["a.weight"].dtype == torch.float32
    assert torch.equal(first["a.weight"], state["a.weight"].float())
    assert first["a.index"].dtype == torch.int64


@pytest.mark.parametrize("key", ["head.weight", "head.bias"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool])
def test_integers_are_no_weights(key, dtype, tmp_path):
    with pytest.raises(InputError, match=rf"{key} is \w+: codes of weights") as refused:
        readings({**STATE, key: (STATE[key] * 100).to(dtype)}, tmp_path)
    assert refused.value.fix == "give float weights"


def test_four_bit_floats_are_refused(tmp_path):
    header = json.dumps({"a.weight": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(InputError, match=r"cannot use|cannot read"):
        read_weights(tmp_path / "w.safetensors")


def test_complex_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.weight is complex"):
        readings({"a.weight": torch.zeros(2, dtype=torch.complex64)}, tmp_path)


@pytest.mark.parametrize("content", [{}, [], {"a": 1}, {"params": {}}, {"params": {"a": 1}}, 7])
def test_a_file_without_tensors_is_refused(content, tmp_path):
    with pytest.raises(InputError, match="is not a state dict"):
        readings(content, tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2), torch.ones(3)], "a list of 2 values, 2 tensors without names"),
        ((torch.ones(2), 1), "a tuple of 2 values, 1 tensor without names"),
        (torch.ones(2, 3), r"one tensor, \[2, 3\], without a name"),
        ({"a": [torch.ones(2)]}, "a dict with a, without tensors"),
        (
            {"a": {"w": torch.ones(2)}, "b": {"w": torch.ones(2)}},
            "2 dictionaries of tensors, a, b, one of which has to be chosen",
        ),
        ({}, "an empty dict"),
        (5, "5, of type int"),
    ],
)
def test_a_file_without_a_state_dict_is_refused_for_what_it_holds(content, words, tmp_path):
    with pytest.raises(InputError, match=f"it holds {words}; save what the network's state_dict"):
        readings(content, tmp_path)


def test_weights_of_numpy_are_those_of_torch(tmp_path):
    arrays = {key: value.numpy() for key, value in STATE.items()}
    assert same(readings({"params": arrays, "psnr": np.float64(30.0)}, tmp_path)[0], STATE)


def test_a_quantized_model_is_refused_as_one(tmp_path):
    with pytest.raises(InputError, match="is already quantized"):
        readings({"format": "odm-deploy model", "tensors": {}}, tmp_path)


def test_a_torchscript_archive_is_refused_as_one(tmp_path):
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit"):
        torch.jit.save(torch.jit.script(nn.Conv2d(3, 3, 1)), tmp_path / "w.pt")
    with pytest.raises(InputError, match="TorchScript"):
        read_weights(tmp_path / "w.pt")


def test_notes_of_the_training_code_do_not_matter(tmp_path):
    arguments = argparse.Namespace(lr=0.1, name="x")
    assert same(readings({"state_dict": STATE, "args": arguments}, tmp_path)[0], STATE)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_key_and_number(broken):
    weight = torch.zeros(4, 27)
    weight[0, :2] = broken
    with pytest.raises(InputError, match=r"head\.0\.weight: 2 of 108 values are NaN or infinite"):
        check_finite({"head.0.weight": weight}, "w.pth")
