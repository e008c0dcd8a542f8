"""What the stress images are for: rounding ties and saturated quantizers, in every network that can be exact."""

from __future__ import annotations

import numpy as np
import pytest

from odm_deploy.proof.stress_images import stress_images
from odm_deploy.quantization.exact.census import RoundingCensus
from odm_deploy.quantization.exact.interpreter import interpret
from odm_deploy.quantization.exact.trace import integer_program
from tests.exact_models import SIZES, calibrated_exact


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_quantizers_meet_ties_and_their_ends(name, bits):
    program = integer_program(calibrated_exact(name, bits))
    census = RoundingCensus(program)
    results = {}

    def watch(step, n, exponent):
        census.watch(step, n, exponent)
        results[step.name] = n, exponent

    interpret(program, stress_images(12), watch)
    reached = census.layers.values()
    # Random weights of RDN reach one end only.
    assert any(layer.lowest + layer.highest for layer in reached)
    assert sum(layer.ties for layer in reached) > 10
    image, exponent = results[program.output]
    assert np.any(image % 2**-exponent == 2**-exponent // 2)
