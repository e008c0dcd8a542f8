"""The straight-through quantizers against hand-computed values, closed forms, and independent derivations."""

import math

import numpy as np
import pytest
import torch

from odm_deploy.grid import Grid
from odm_deploy.quantization.power_of_two import scale_near_power_of_two
from odm_deploy.quantization.straight_through.range import range_quantize, snapped_grid
from odm_deploy.quantization.straight_through.symmetric import symmetric_codes, symmetric_quantize


def t(value):
    return torch.tensor(value, requires_grad=True)


def test_hand_computed_levels():
    # [-1, 2] at 2 bits: scale 1, zero point 1, levels -1 0 1 2; halves round to even quotients.
    x = torch.tensor([-5.0, -1.0, -0.5, 0.4, 0.5, 1.5, 1.6, 9.0])
    levels = range_quantize(x, t(-1.0), t(2.0), 2)
    assert levels.tolist() == [-1.0, -1.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0]


def test_zero_is_snapped_to_a_level():
    # [-0.4, 2.6] at 2 bits: scale 1, -l/s = 0.4, zero point 0: the grid becomes 0 1 2 3.
    assert range_quantize(torch.tensor([-0.4, 0.2, 2.9]), t(-0.4), t(2.6), 2).tolist() == [0.0, 0.0, 3.0]


def test_a_free_grid_starts_at_its_lower_bound():
    levels = range_quantize(torch.tensor([-0.4, 0.2, 9.0]), t(-0.4), t(2.6), 2, free=True)
    assert levels.tolist() == pytest.approx([-0.4, 0.6, 2.6], abs=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("lower", "upper"), [(-1.37, 2.9), (0.0, 3.3), (-2.2, 0.0), (-0.01, 70.0)])
def test_levels_are_those_of_the_grid_to_the_bit(bits, lower, upper):
    x = torch.randn(4000, generator=torch.Generator().manual_seed(bits)) * (upper - lower)
    bounds = torch.tensor(lower), torch.tensor(upper)
    scale, zero_point = snapped_grid(*bounds, bits)
    grid = Grid(scale.item(), int(zero_point), bits)
    assert np.array_equal(range_quantize(x, *bounds, bits).numpy(), grid.fake_quantize(x.numpy()))


def test_the_grid_is_that_of_from_range():
    scale, zero_point = snapped_grid(torch.tensor(-1.5), torch.tensor(6.0), 4)
    reference = Grid.from_range(-1.5, 6.0, 4)
    assert (scale.item(), int(zero_point)) == (reference.scale, reference.zero_point)


@pytest.mark.parametrize("bounds", [(-152.0, 210.0), (-1.0, 0.5), (0.0, 3.0), (-3.0, 0.0)])
@pytest.mark.parametrize("bits", [4, 8])
def test_so_is_that_of_powers_of_two(bounds, bits):
    scale, zero_point = snapped_grid(*map(torch.tensor, bounds), bits, power_of_two=True)
    reference = Grid.from_range(*bounds, bits, power_of_two=True)
    assert (scale.item(), int(zero_point)) == (reference.scale, reference.zero_point)


def test_of_a_range_that_is_cut_to_a_power_of_two_both_ends_lose_as_much():
    scale, zero_point = snapped_grid(torch.tensor(-152.0), torch.tensor(182.0), 8, power_of_two=True)
    grid = Grid(scale.item(), int(zero_point), 8)
    assert grid.scale == 1.0
    assert abs((grid.lower + 152.0) - (182.0 - grid.upper)) <= 2 * grid.scale


def test_gradients_are_the_closed_form():
    # [-1, 2] at 2 bits, already snapped. dy/du = [x>u] + (y-clip)/(u-l), dy/dl = [x<l] - (y-clip)/(u-l).
    x, lower, upper = t([-5.0, 0.3, 1.6, 9.0]), t(-1.0), t(2.0)
    weights = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    (range_quantize(x, lower, upper, 2) * weights).sum().backward()
    assert x.grad.tolist() == [0.0, 10.0, 100.0, 0.0]
    rounding = (10 * (0.0 - 0.3) + 100 * (2.0 - 1.6)) / 3.0
    assert upper.grad.item() == pytest.approx(1000.0 + rounding, rel=1e-5)
    assert lower.grad.item() == pytest.approx(1.0 - rounding, rel=1e-5)


def test_free_gradients_agree_with_autograd_through_eq_1():
    """Independent derivation: Eq. 1 written out with a straight-through rounding, differentiated by autograd."""

    def straight_through_round(v):
        return v + (torch.round(v) - v).detach()

    x = torch.randn(500, generator=torch.Generator().manual_seed(1)) * 2
    ours, eq1 = (x.clone().requires_grad_() for _ in range(2))
    bounds, eq1_bounds = (t(-1.3), t(2.1)), (t(-1.3), t(2.1))
    weights = torch.randn(500, generator=torch.Generator().manual_seed(2))
    (range_quantize(ours, *bounds, 3, free=True) * weights).sum().backward()
    lower, upper = eq1_bounds
    scale = (upper - lower) / 7
    clipped = torch.minimum(torch.maximum(eq1, lower), upper)
    ((straight_through_round((clipped - lower) / scale) * scale + lower) * weights).sum().backward()
    assert torch.allclose(ours.grad, eq1.grad)
    for mine, theirs in zip(bounds, eq1_bounds, strict=True):
        assert mine.grad.item() == pytest.approx(theirs.grad.item(), rel=1e-4)


def test_two_bit_mid_rise_weights_are_u_and_a_third_of_u():
    weight = torch.linspace(-2.0, 2.0, 1001)
    levels = symmetric_quantize(weight, torch.tensor(1.5), 2, mid_rise=True)
    assert sorted(set(levels.tolist())) == pytest.approx([-1.5, -0.5, 0.5, 1.5])


def test_mid_tread_weights_hold_zero():
    codes, scale = symmetric_codes(torch.tensor([-9.0, -0.2, 0.3, 1.4]), torch.tensor(3.0), 3, mid_rise=False)
    assert codes.tolist() == [-3.0, 0.0, 0.0, 1.0]
    assert scale.item() == 1.0


def test_mid_rise_is_eq_1_on_a_symmetric_range():
    """Independent: q(W; -u, u) of METHODS with s = 2u / (2^b - 1)."""
    weight, bound, bits = torch.randn(3000, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), 1.7, 3
    step = 2 * bound / (2**bits - 1)
    expected = torch.round((weight.clamp(-bound, bound) + bound) / step) * step - bound
    levels = symmetric_quantize(weight, torch.tensor(bound), bits, mid_rise=True)
    assert torch.allclose(levels.double(), expected, atol=1e-6)


def test_weight_gradients_are_the_closed_form():
    # u = 3, 3 bits mid-tread: scale 1. dW^/du = sign(W) outside, (W^ - W) / u inside.
    weight, bound = t([-7.0, -0.2, 1.4, 5.0]), t([3.0])
    grads = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    (symmetric_quantize(weight, bound, 3, mid_rise=False) * grads).sum().backward()
    assert weight.grad.tolist() == [0.0, 10.0, 100.0, 0.0]
    assert bound.grad.item() == pytest.approx(-1.0 + 10 * 0.2 / 3 - 100 * 0.4 / 3 + 1000.0, rel=1e-5)


def test_quantizers_stay_in_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert range_quantize(torch.randn(4).bfloat16(), t(-1.0), t(1.0), 4).dtype == torch.float32
        assert symmetric_quantize(torch.randn(4, 2), t([1.0]), 4, mid_rise=True).dtype == torch.float32


def test_scales_near_powers_of_two_by_hand():
    scales = torch.tensor([3.0, 2.5, 0.25])
    assert scale_near_power_of_two(scales, None).tolist() == [4.0, 2.0, 0.25]
    assert scale_near_power_of_two(scales, torch.tensor(1.0)).tolist() == [4.0, 2.0, 0.25]
    assert scale_near_power_of_two(scales, torch.tensor(0.0)).tolist() == scales.tolist()
    halfway = scale_near_power_of_two(scales, torch.tensor(0.5))
    assert halfway.tolist() == pytest.approx([math.sqrt(12), math.sqrt(5), 0.25])
