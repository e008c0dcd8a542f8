"""The proof: its bounds hold on whatever images, are not vacuous, and fail where float32 really rounds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from odm_deploy.errors import InputError
from odm_deploy.proof.stress_images import stress_images
from odm_deploy.quantization.exact.bounds import bounds_of, prove, widest
from odm_deploy.quantization.exact.interpreter import interpret
from odm_deploy.quantization.exact.program import (
    Add,
    AddConstant,
    Concat,
    Convolve,
    PixelShuffle,
    PRelu,
    Program,
    Quantize,
)
from odm_deploy.quantization.exact.trace import integer_program
from tests.exact_models import SIZES, calibrated_exact


def conv(name="conv", source="codes", codes=((3, -5),), *, mantissa=(1,), shift=(0,), bias=(0,), exponent=0):
    codes = np.array(codes, np.int8)
    return Convolve(
        *(name, (source,), name, codes.reshape(*codes.shape, 1, 1)),
        *(np.array(values, np.int64) for values in (mantissa, shift, bias)),
        *(exponent, (1, 1), (0, 0), (1, 1), 1),
    )


def quantize(bits=8, zero_point=0, exponent=0, source="image", name="codes"):
    return Quantize(name, (source,), "conv", exponent, zero_point, bits)


def program(*steps, channels=2):
    return Program(steps, "image", steps[-1].name, channels)


def bound(steps, name):
    return next(found for found in bounds_of(program(*steps)) if found.step == name)


def largest_subset_sum(weights, lowest, highest, bias):
    """By trying every subset of products, with the bias and without."""
    sums = [0]
    for weight in weights:
        sums += [s + weight * code for s, code in itertools.product(sums, (lowest, highest))]
    return max(abs(s) for s in sums), max(abs(s + b) for s in sums for b in (0, bias))


@pytest.mark.parametrize(("bits", "zero_point"), [(4, 0), (4, 7), (4, 15), (7, 64), (8, 128)])
@pytest.mark.parametrize("weights", [(3, -5, 7), (3, 5, 7), (-1, 0, 1)])
def test_partial_sums_are_bounded_as_trying_all_of_them_shows(bits, zero_point, weights):
    quantizer = quantize(bits, zero_point)
    products, with_bias = largest_subset_sum(weights, quantizer.lowest, quantizer.highest, 11)
    assert bound([quantizer, conv(codes=[weights])], "conv").magnitude == products
    found = bound([quantizer, conv(codes=[weights], bias=[11])], "conv").magnitude
    assert with_bias <= found <= products + 11


def test_codes_that_engines_shift_are_bounded_shifted_too():
    # Unsigned 8-bit codes become -128..127, and a bias of 128 * sum(w) makes up for it.
    found = bound([quantize(8, 0), conv(codes=[(100, 100)])], "conv")
    assert found.magnitude == 128 * 200 + 128 * 200
    assert bound([quantize(7, 0), conv(codes=[(100, 100)])], "conv").magnitude == 127 * 200


def test_digits_of_scales_and_fine_biases_count():
    plain = bound([quantize(4), conv()], "conv").magnitude
    assert bound([quantize(4), conv(mantissa=[3])], "conv").magnitude == 3 * plain
    assert bound([quantize(4), conv(shift=[5], exponent=-5)], "conv").magnitude == plain
    assert bound([quantize(4), conv(shift=[5], exponent=-5, bias=[1])], "conv").magnitude == 32 * plain + 1


def test_an_addition_starts_from_the_other_operand_in_the_finer_unit():
    steps = [
        quantize(4),
        conv(),
        conv("fine", exponent=-3),
        Add("sum", ("conv", "fine")),
    ]
    single = bound(steps, "conv").magnitude
    assert bound(steps, "sum").magnitude == 8 * single + single
    assert bound(steps, "sum").layer == "fine"


def test_constants_slopes_shuffles_and_joins():
    constant = AddConstant("moved", ("image",), np.array([-3, 5]), -2)
    assert bound([constant], "moved").magnitude == 4 * 255 + 5
    slope = PRelu("relu", ("image",), np.array([3]), 2)
    assert bound([slope], "relu").magnitude == 4 * 255
    steep = PRelu("relu", ("image",), np.array([9]), 2)
    assert bound([steep], "relu").magnitude == 9 * 255
    steps = [
        quantize(4),
        conv(codes=[(1, 0), (2, 0), (3, 0), (4, 0)], mantissa=[1] * 4, shift=[3, 2, 1, 0], bias=[0] * 4),
    ]
    # Channels come together in the finest unit among them, 2^0.
    assert bound([*steps, PixelShuffle("shuffled", ("conv",), 2)], "shuffled").magnitude == 15 * max(8, 8, 6, 4)
    joined = Concat("joined", ("image", "conv"))
    assert bound([*steps, joined], "joined").magnitude == 255


def test_a_quantizers_offset_counts():
    # Inputs in units of 2^-20 of a code, around 128 codes: 27 bits.
    steps = [quantize(4, exponent=-20), conv(exponent=-20), quantize(8, 128, 0, "conv", "next")]
    assert bound(steps, "next").magnitude == bound(steps, "conv").magnitude + 128 * 2**20
    assert not bound(steps, "next").holds


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("bits", [8, 2])
def test_no_image_exceeds_the_bounds(name, bits):
    traced = integer_program(calibrated_exact(name, bits))
    proven = {found.step: found for found in prove(traced)}
    met = dict.fromkeys(proven, 0)

    def watch(step, integers, exponent):
        # Biases are multiples of the products' unit, which the shift brings every channel to.
        if isinstance(step, Convolve):
            in_own_units = np.abs(integers).max((0, 2, 3)) >> step.shift
            met[step.name] = max(met[step.name], int(in_own_units.max()))

    interpret(traced, stress_images(12), watch)
    assert all(met[step] <= found.magnitude for step, found in proven.items())
    # Nor are the bounds so wide that they would prove little: random weights come within a factor of 2^7.
    assert all(met[layer] > 2**-7 * proven[layer].magnitude for layer in calibrated_exact(name, bits).layers)
    assert set(widest(proven.values())) - {"the image"} == set(calibrated_exact(name, bits).layers)


def test_bounds_are_reached():
    traced = program(quantize(8, 128), conv(codes=[(127, -127)]))
    image = np.array([255, 0], np.uint8).reshape(1, 2, 1, 1)
    found = []
    interpret(traced, image, lambda step, integers, _: found.append(int(np.abs(integers).max())))
    assert found[-1] == 127 * 127 <= bound(traced.steps, "conv").magnitude == 128 * 127 + 127 * 127


def test_what_float32_cannot_hold_is_refused_with_layer_bound_and_remedy():
    too_fine = program(quantize(8, 128), conv(codes=[(127, 127)], mantissa=[2**10 + 1]))
    with pytest.raises(InputError) as refusal:
        prove(too_fine)
    line = str(refusal.value)
    assert line.startswith("conv is not exact in float32: its sums reach 2^25.0 units, float32 holds 2^24; give conv")
    assert next(found for found in bounds_of(too_fine) if not found.holds).origins == {("conv", 0)}
