"""PAMS against hand-computed levels and its closed-form gradient."""

import pytest
import torch

from training.methods.pams import MaxScale


def test_pams_levels_by_hand():
    quantizer = MaxScale(3, faithful=True)
    with torch.no_grad():
        quantizer.alpha.fill_(6.0)
    # Q = 3, step 2: -6 -4 -2 0 2 4 6.
    x = torch.tensor([-99.0, -7.5, -3.1, 0.9, 1.1, 5.2, 99.0])
    assert quantizer(x).tolist() == [-6.0, -6.0, -4.0, 0.0, 2.0, 6.0, 6.0]
    deployable = MaxScale(3, faithful=False)
    with torch.no_grad():
        deployable.alpha.fill_(6.0)
    assert deployable(x).tolist() == [-8.0, -8.0, -4.0, 0.0, 2.0, 6.0, 6.0]


def test_pams_gradient_is_the_closed_form():
    quantizer = MaxScale(3, faithful=True)
    with torch.no_grad():
        quantizer.alpha.fill_(6.0)
    x = torch.tensor([-9.0, 0.9, 5.2, 9.0], requires_grad=True)
    weights = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    (quantizer(x) * weights).sum().backward()
    assert x.grad.tolist() == [0.0, 10.0, 100.0, 0.0]
    expected = -1.0 + 10 * (0.0 - 0.9) / 6 + 100 * (6.0 - 5.2) / 6 + 1000.0
    assert quantizer.alpha.grad.item() == pytest.approx(expected, rel=1e-5)


def test_pams_starts_at_the_mean_of_the_largest_magnitudes():
    quantizer = MaxScale(4, faithful=False)
    quantizer.observe(torch.tensor([[[[1.0, -3.0]]], [[[2.0, 5.0]]]]))
    quantizer.initialize()
    assert quantizer.alpha.item() == 4.0


def test_pams_follows_the_batches_and_clips_nothing_in_its_first_epoch(attach):
    method, model = attach("pams", 3, first_epoch=2)
    quantizer = next(iter(model.layers.values())).activation
    x = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0)) * 50
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 300.0, -960.0
    method.begin_iteration(model, 1)
    levels = quantizer(x)
    assert quantizer.alpha.item() == pytest.approx(630.0)
    assert levels[1, 0, 0, 0].item() == pytest.approx(-5 * 210.0)
    method.begin_iteration(model, 2)
    assert quantizer(x)[1, 0, 0, 0].item() == pytest.approx(-4 * 210.0)
    assert quantizer.alpha.item() == pytest.approx(630.0)
