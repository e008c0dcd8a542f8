"""DAQ's levels are those of a Gaussian, per image and channel."""

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from odm_deploy.errors import UsageError
from training.methods.daq import GAUSSIAN_STEPS, mid_rise_levels


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_daq_steps_are_optimal_for_a_gaussian(bits):
    """Independent: minimise the squared error of the mid-rise quantizer of a unit normal numerically."""
    half = 2 ** (bits - 1)

    def error(step):
        edges = [step * k for k in range(half)] + [np.inf]
        parts = [
            integrate.quad(lambda x, level=(k + 0.5) * step: (x - level) ** 2 * stats.norm.pdf(x), *edges[k : k + 2])[0]
            for k in range(half)
        ]
        return 2 * sum(parts)

    best = optimize.minimize_scalar(error, bounds=(0.05, 2.0), method="bounded", options={"xatol": 1e-6}).x
    assert GAUSSIAN_STEPS[bits] == pytest.approx(best, rel=2e-3)


def test_daq_levels_by_hand():
    x = torch.tensor([-9.0, -0.1, 0.1, 1.2, 9.0])
    step = GAUSSIAN_STEPS[2] * 2.0
    levels = mid_rise_levels(x, torch.tensor(0.0), torch.tensor(step), 2)
    assert levels.tolist() == pytest.approx([-1.5 * step, -0.5 * step, 0.5 * step, 0.5 * step, 1.5 * step])


def test_daq_uses_the_statistics_of_each_image_and_channel(attach):
    _, model = attach("daq", 4)
    quantizer = next(iter(model.layers.values())).activation
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scaled = x * torch.tensor([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1) + 5.0
    expected = quantizer(x) * torch.tensor([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1) + 5.0
    assert torch.allclose(quantizer(scaled), expected, rtol=1e-3, atol=1e-3)


def test_daq_behind_a_relu_has_levels_from_zero_on(attach):
    """Independent: the formulas of the paper's code for one channel, in numpy."""
    _, model = attach("daq", 2)
    quantizer = model.layers["body.0.body.2"].activation
    assert quantizer.positive.is_set
    assert not model.layers["body.0.body.0"].activation.positive.is_set
    x = torch.relu(torch.randn(1, 6, 9, 9, generator=torch.Generator().manual_seed(1)) * 20)
    channel = x[0, 0].double().numpy()
    count = (channel > 0).sum() + 1
    mean = channel.sum() / count
    step = GAUSSIAN_STEPS[2] * np.sqrt((channel**2).sum() / count - mean**2)
    expected = np.clip(np.round(channel / step), 0, 3) * step
    assert quantizer(x)[0, 0].numpy() == pytest.approx(expected, rel=1e-4)


def test_daq_gradients_are_the_identity_also_where_values_are_clamped(attach):
    _, model = attach("daq", 2)
    layer = model.layers["body.0.body.2"]
    x = torch.relu(torch.randn(1, 6, 9, 9, generator=torch.Generator().manual_seed(1)) * 20).requires_grad_()
    layer.activation(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    layer.weight_quantizer(layer.weight).sum().backward()
    assert torch.equal(layer.weight.grad, torch.ones_like(layer.weight))


def test_daq_may_quantize_an_images_deviations(attach):
    """Independent: the formulas of the paper's code, in numpy."""
    _, model = attach("daq", 2, deviation_bits=4)
    quantizer = model.layers["body.0.body.0"].activation
    x = torch.randn(1, 6, 9, 9, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 7).reshape(1, 6, 1, 1)
    values = x[0].double().numpy()
    mean, deviation = values.mean((1, 2)), values.std((1, 2), ddof=1)
    step = GAUSSIAN_STEPS[4] * deviation.std(ddof=1)
    codes = np.clip(np.floor((deviation - deviation.mean()) / step), -8, 7) + 0.5
    steps = (GAUSSIAN_STEPS[2] * (codes * step + deviation.mean()))[:, None, None]
    expected = (np.clip(np.floor((values - mean[:, None, None]) / steps), -2, 1) + 0.5) * steps + mean[:, None, None]
    assert quantizer(x)[0].numpy() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_daq_refuses_widths_that_its_table_has_not(attach):
    with pytest.raises(UsageError, match="deviation_bits = 9"):
        attach("daq", 2, deviation_bits=9)
