"""Adaptive rounding against exhaustive search, and against what it promises: never worse than the nearest codes."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odm_deploy.quantization.rounding import DAMPING, round_to_output


def correlated(patches, values, seed):
    """Inputs whose values resemble each other, as neighbouring pixels do."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(patches, 1, generator=generator) + 0.3 * torch.randn(patches, values, generator=generator)


def fitted(weight, bias, scale, limit, x, quantized, **options):
    """Fitted to what a float layer makes of the patches."""
    return round_to_output(weight, bias, scale, limit, x @ weight.T + bias, quantized, **options)


def problem(seed, *, patches=200, values=12, outputs=5, limit=7):
    x = correlated(patches, values, seed)
    weight = torch.randn(outputs, values, generator=torch.Generator().manual_seed(seed + 1))
    scale = weight.abs().amax(1) / limit
    return weight, torch.linspace(-1, 1, outputs), scale, limit, x, torch.round(x / 0.1) * 0.1


def output_error(weight, bias, codes, new_bias, scale, x, quantized):
    """The objective, written out: mean over patches, sum over outputs, and the damping."""
    levels = codes * scale.double()[:, None]
    difference = x.double() @ weight.double().T + bias - quantized.double() @ levels.T - new_bias
    damping = DAMPING * quantized.double().square().mean()
    return float(difference.square().sum(1).mean() + damping * (weight.double() - levels).square().sum())


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 7, 127]),
    st.booleans(),
    st.booleans(),
)
def test_never_worse_than_nearest_and_always_on_the_levels(seed, limit, round_weights, correct_bias):
    weight, bias, scale, limit, x, quantized = problem(seed, limit=limit)
    found = fitted(weight, bias, scale, limit, x, quantized, round_weights=round_weights, correct_bias=correct_bias)
    assert torch.equal(found.codes, found.codes.round())
    assert float(found.codes.abs().max()) <= limit
    nearest = torch.clamp(torch.round(weight.double() / scale.double()[:, None]), -limit, limit)
    if not round_weights:
        assert torch.equal(found.codes, nearest)
    if not correct_bias:
        assert torch.equal(found.bias, bias.double())
    reached = output_error(weight, bias, found.codes, found.bias, scale, x, quantized)
    assert reached <= output_error(weight, bias, nearest, bias, scale, x, quantized) * (1 + 1e-3) + 1e-5


def test_on_correlated_inputs_most_of_the_error_goes():
    weight, bias, scale, limit, x, quantized = problem(3, values=72, outputs=8)
    found = fitted(weight, bias, scale, limit, x, quantized)
    nearest = torch.round(weight.double() / scale[:, None])
    assert output_error(weight, bias, found.codes, found.bias, scale, x, quantized) < 0.3 * output_error(
        weight, bias, nearest, bias, scale, x, quantized
    )
    # Also on patches it has not seen.
    fresh = correlated(500, 72, 77)
    assert output_error(weight, bias, found.codes, found.bias, scale, fresh, fresh) < 0.5 * output_error(
        weight, bias, nearest, bias, scale, fresh, fresh
    )


def test_a_small_problem_is_solved_as_well_as_by_trying_everything():
    weight, bias, scale, limit, x, quantized = problem(5, values=4, outputs=3, limit=3)
    found = fitted(weight, bias, scale, limit, x, quantized, correct_bias=False)
    best = 0.0
    for row in range(3):
        one = [torch.tensor(codes).double()[None] for codes in itertools.product(range(-3, 4), repeat=4)]
        own = slice(row, row + 1)
        best += min(output_error(weight[own], bias[own], codes, bias[own], scale[own], x, quantized) for codes in one)
    # No single weight can do better; pairs might, by little.
    reached = output_error(weight, bias, found.codes, bias, scale, x, quantized)
    assert best <= reached * (1 + 1e-3) <= 1.25 * best
    nearest = torch.clamp(torch.round(weight.double() / scale.double()[:, None]), -3, 3)
    assert reached < output_error(weight, bias, nearest, bias, scale, x, quantized)


def test_a_bias_alone_takes_back_the_mean():
    weight, bias, scale, limit, x, quantized = problem(8)
    shifted = quantized + 0.2
    found = fitted(weight, bias, scale, limit, x, shifted, round_weights=False)
    levels = found.codes * scale.double()[:, None]
    difference = x.double() @ weight.double().T + bias - shifted.double() @ levels.T - found.bias
    assert float(difference.mean(0).abs().max()) < 1e-4


def test_the_same_twice():
    first, second = (fitted(*problem(11)) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.bias, second.bias)
