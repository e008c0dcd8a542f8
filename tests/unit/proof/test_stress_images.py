"""What the stress images are for: rounding ties and saturated quantizers, in every network that can be exact."""

from __future__ import annotations

import numpy as np
import pytest

from odm_deploy.proof.integer_interpreter import interpret
from odm_deploy.proof.stress_images import stress_images
from odm_deploy.quantization.exact_program import Quantize
from odm_deploy.quantization.exact_trace import integer_program
from tests.exact_models import SIZES, calibrated_exact


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_quantizers_meet_ties_and_their_ends(name, bits):
    program = integer_program(calibrated_exact(name, bits))
    results = {}
    interpret(program, stress_images(12), lambda step, n, exponent: results.update({step.name: (n, exponent)}))
    inner = [step for step in program.steps if isinstance(step, Quantize) and step.sources[0] != program.input]
    ties = 0
    for step in inner:
        n, exponent = results[step.sources[0]]
        dropped = step.exponent - exponent
        codes, _ = results[step.name]
        within = (codes > step.lowest) & (codes < step.highest)
        ties += int((within & (n % 2**dropped == 2**dropped // 2)).sum()) if dropped > 0 else 0
    # Random weights of RDN reach one end only.
    assert any(np.isin(results[step.name][0], [step.lowest, step.highest]).any() for step in inner)
    assert ties > 10
    image, exponent = results[program.output]
    assert np.any(image % 2**-exponent == 2**-exponent // 2)
