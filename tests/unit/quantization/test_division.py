import numpy as np
import pytest
import torch

from odm_deploy.quantization.straight_through.division import divided

STEPS = [1, 3, 7, 15, 31, 63, 127, 255]


@pytest.mark.parametrize("steps", STEPS)
def test_a_quotient_is_the_nearest_float32(steps):
    values = torch.rand(1 << 16, generator=torch.Generator().manual_seed(steps)) * 300
    expected = values.numpy() / np.float32(steps)
    assert np.array_equal(divided(values, steps).numpy(), expected)


@pytest.mark.parametrize("steps", STEPS)
def test_a_gpu_that_multiplies_by_the_reciprocal_gets_the_same(steps):
    """What CUDA kernels and compiled ones make of a division by a Python number; `tests/gpu` has the real ones."""
    values = torch.rand(1 << 16, generator=torch.Generator().manual_seed(steps)) * 300
    assert torch.equal((values.double() * (1.0 / steps)).float(), divided(values, steps))
    in_float32 = values * torch.tensor(1.0 / steps)
    assert torch.equal(in_float32, divided(values, steps)) == (steps == 1)
