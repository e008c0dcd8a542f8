"""Ties and saturated codes are counted as a reader with pencil and paper would."""

from __future__ import annotations

import numpy as np

from odm_deploy.quantization.exact.census import Reached, RoundingCensus
from odm_deploy.quantization.exact.interpreter import interpret
from odm_deploy.quantization.exact.program import AddConstant, Program, Quantize


def program(*quantizers):
    """Quantizers of the image, to which a constant of zero was added so that it is not codes already."""
    shifted = AddConstant("shifted", ("image",), np.zeros(3, np.int64), 0)
    return Program((shifted, *quantizers), "image", quantizers[-1].name)


def pixels(*values):
    return np.broadcast_to(np.array(values, np.uint8), (1, 3, 1, len(values)))


def test_counts_ties_between_codes_and_both_ends():
    # Steps of 4, codes -1..2: ties at -2 (no pixel), 2 and 6; 10 is beyond the last code, and so is 14.
    quantizer = Quantize("codes", ("shifted",), "conv", 2, 1, 2)
    census = RoundingCensus(program(quantizer))
    interpret(program(quantizer), pixels(0, 1, 2, 3, 6, 7, 10, 14), census.watch)
    assert census.layers == {"conv": Reached(ties=3 * 2, lowest=0, highest=3 * 4, rounds=True)}


def test_adds_up_over_images_and_quantizers_of_one_result():
    fine, coarse = Quantize("a", ("shifted",), "first", 1, 0, 8), Quantize("b", ("shifted",), "second", 2, 0, 8)
    both = program(fine, coarse)
    census = RoundingCensus(both)
    for value in (1, 2, 6):
        interpret(both, pixels(value), census.watch)
    first, second = Reached(ties=3, lowest=3, rounds=True), Reached(ties=6, lowest=6, rounds=True)
    assert census.layers == {"first": first, "second": second}
    assert census.summary() == (
        "9 rounding ties, at least 3 in each of 2 quantizers; 9 codes at a grid's end, at least 3 in each"
    )


def test_where_nothing_is_rounded_there_are_no_ties_to_miss():
    both = program(Quantize("a", ("shifted",), "whole", 0, 0, 8), Quantize("b", ("shifted",), "coarse", 1, 0, 8))
    census = RoundingCensus(both)
    interpret(both, pixels(1), census.watch)
    assert census.summary().startswith("3 rounding ties, at least 3 in each of 1 quantizer;")


def test_leaves_out_what_reads_the_image():
    pixel_codes = Quantize("codes", ("image",), "head", 0, 0, 8)
    assert not RoundingCensus(Program((pixel_codes,), "image", "codes")).layers
