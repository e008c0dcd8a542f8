"""Integers alone against torch, at every width and in every network that can be exact."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odm_deploy.errors import InputError
from odm_deploy.proof.stress_images import stress_images
from odm_deploy.quantization.exact import interpreter as integer_interpreter
from odm_deploy.quantization.exact.interpreter import interpret, shift_round
from odm_deploy.quantization.exact.program import Convolve, Program, Quantize
from odm_deploy.quantization.exact.trace import integer_program
from tests.exact_models import SIZES, calibrated_exact


def pixels(output: torch.Tensor) -> np.ndarray:
    return output.round().clamp(0, 255).to(torch.uint8).numpy()


@given(st.integers(-(2**40), 2**40), st.integers(-10, 40))
def test_shifts_round_half_to_even_like_fractions(integer, bits):
    exact = Fraction(integer) / Fraction(2) ** bits
    assert int(shift_round(np.array([integer], np.int64), bits)[0]) == round(exact)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_torch_computes_the_same_bytes_in_float32_and_float64(name, bits):
    model = calibrated_exact(name, bits)
    images = stress_images(24, seed=bits)
    expected = interpret(integer_program(model), images)
    single = model(torch.from_numpy(images).float())
    double = model.double()(torch.from_numpy(images).double())
    assert np.array_equal(pixels(single), expected)
    # Not the pixels alone: no float operation rounded.
    assert torch.equal(single.double(), double)
    assert len(np.unique(expected)) > 50


def test_parts_of_an_image_come_out_as_in_the_whole():
    model = calibrated_exact("edsr", 3)
    program = integer_program(model)
    image = stress_images(1, side=40)
    whole, part = interpret(program, image), interpret(program, np.ascontiguousarray(image[..., 4:36, 4:36]))
    # Seven 3x3 convolutions look 7 pixels far.
    assert np.array_equal(part[..., 16:-16, 16:-16], whole[..., 24:-24, 24:-24])
    assert not np.array_equal(part, whole[..., 8:-8, 8:-8])


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [
        ((1, 1), (0, 0), (1, 1), 1),
        ((2, 3), (2, 1), (1, 2), 1),
        ((1, 2), (3, 0), (2, 1), 2),
        ((1, 1), (1, 1), (1, 1), 4),
    ],
)
@pytest.mark.parametrize("band", [1, 25, integer_interpreter.BAND_PX])
def test_convolutions_of_every_shape(stride, padding, dilation, groups, band, monkeypatch):
    monkeypatch.setattr(integer_interpreter, "BAND_PX", band)
    rng = np.random.default_rng(1)
    codes = rng.integers(-128, 128, (8, 4 // groups, 3, 2)).astype(np.int8)
    mantissa, shift, bias = rng.integers(0, 4, 8) * 2 + 1, rng.integers(0, 3, 8), rng.integers(-99, 99, 8)
    program = Program(
        (
            Quantize("codes", ("image",), "conv", 0, 100, 8),
            Convolve("conv", ("codes",), "conv", codes, mantissa, shift, bias, -9, stride, padding, dilation, groups),
        ),
        *("image", "conv", 4),
    )
    images = rng.integers(0, 256, (2, 4, 9, 10)).astype(np.uint8)
    seen = {}
    interpret(program, images, lambda step, integers, exponent: seen.update({step.name: (integers, exponent)}))
    centred = torch.from_numpy(np.clip(images.astype(np.int64) + 100, 0, 255) - 100).double()
    sums = torch.nn.functional.conv2d(
        centred, torch.from_numpy(codes).double(), None, stride, padding, dilation, groups
    ).numpy()
    expected = sums * (mantissa << shift)[:, None, None] + bias[:, None, None]
    integers, exponent = seen["conv"]
    assert exponent == -9
    assert np.array_equal(integers, expected)


@pytest.mark.parametrize("images", [np.zeros((1, 3, 8, 8), np.float32), np.zeros((3, 8, 8), np.uint8)])
def test_what_are_no_images_is_refused(images):
    with pytest.raises(InputError, match=r"not uint8 \[N, 3, H, W\]"):
        interpret(integer_program(calibrated_exact("edsr")), images)
