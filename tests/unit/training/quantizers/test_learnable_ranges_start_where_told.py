import numpy as np
import pytest
import torch

from odm_deploy.grid import Grid
from training.quantizers.learnable_range import LearnableRange


def observed(x, bits=4, **options):
    quantizer = LearnableRange(bits, **options)
    for batch in x:
        quantizer.observe(batch)
    quantizer.initialize()
    return quantizer


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 30, 30, generator=generator) * scale for scale in (1.0, 2.0)]


def test_percentiles_are_averaged_over_batches(batches):
    lower, upper = observed(batches, init="percentile", percent=95).range
    assert lower.item() == pytest.approx(np.mean([np.percentile(b.numpy(), 5) for b in batches]), rel=1e-5)
    assert upper.item() == pytest.approx(np.mean([np.percentile(b.numpy(), 95) for b in batches]), rel=1e-5)


def test_minmax_spans_all_batches(batches):
    lower, upper = observed(batches, init="minmax").range
    everything = torch.cat(batches)
    assert (lower.item(), upper.item()) == (everything.min().item(), everything.max().item())


def test_mse_is_no_worse_than_any_shrunk_extreme(batches):
    everything = torch.cat(batches)

    def error(grid):
        return np.mean((grid.fake_quantize(everything.numpy()) - everything.numpy()) ** 2)

    ours = error(observed(batches, bits=3, init="mse").grid())
    for factor in (1.0, 0.8, 0.6, 0.4):
        extremes = factor * everything.min().item(), factor * everything.max().item()
        assert ours <= error(Grid.from_range(*extremes, 3)) * 1.02


def test_a_range_always_holds_zero():
    quantizer = observed([torch.rand(2, 3, 8, 8) + 5.0])
    assert quantizer.range[0].item() == 0.0
    with torch.no_grad():
        quantizer.lower.fill_(3.0)
        quantizer.upper.fill_(-3.0)
    quantizer.project()
    lower, upper = (bound.item() for bound in quantizer.range)
    assert lower == 0.0
    assert upper > lower
    assert quantizer.grid().zero_point == 0


def test_a_free_range_need_not_hold_zero():
    quantizer = observed([torch.rand(2, 3, 8, 8) + 5.0], free=True, init="minmax")
    assert quantizer.grid().lower == pytest.approx(5.0, abs=0.05)


def test_a_dead_layer_keeps_a_range_to_divide_by():
    quantizer = observed([torch.zeros(2, 3, 8, 8)])
    assert torch.equal(quantizer(torch.zeros(4)), torch.zeros(4))
    assert quantizer.grid().scale > 0


def test_relative_ranges_move_in_proportion_to_their_width(batches):
    plain, relative = (observed([1000 * b for b in batches], relative=flag) for flag in (False, True))
    assert relative.range[1].item() == pytest.approx(plain.range[1].item(), rel=1e-5)
    before = relative.range[1].item()
    with torch.no_grad():
        relative.upper.add_(0.01)
    width = relative.unit.item()
    assert relative.range[1].item() - before == pytest.approx(0.01 * width, rel=1e-3)
