import numpy as np
import pytest
import torch

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.quantization.observers import InputObserver
from odm_deploy.quantization.ranges import RangeMethod, choose_grid, clipped_share, relative_mismatch


def observer_of(values: torch.Tensor, percentile: float | None = None) -> InputObserver:
    observer = InputObserver("layer", percentile)
    observer.add(values)
    return observer


@pytest.fixture(scope="module")
def heavy_tailed() -> torch.Tensor:
    """Values like those of a super-resolution network: a narrow middle, a few very large ones."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20_000, generator=generator)
    values[:5] = torch.tensor([60.0, -25.0, 40.0, 30.0, -20.0])
    return values


def error_of(values: torch.Tensor, grid: Grid) -> float:
    return float(np.square(grid.fake_quantize(values.numpy()) - values.numpy()).sum())


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_minmax_clips_nothing(heavy_tailed, bits, free):
    grid = choose_grid(observer_of(heavy_tailed), bits, RangeMethod.MINMAX, free=free)
    assert (grid.bits, grid.is_free) == (bits, free)
    assert grid.lower <= float(heavy_tailed.min()) + grid.scale / 2
    assert grid.upper >= float(heavy_tailed.max()) - grid.scale / 2


def test_a_percentile_clips_its_share(heavy_tailed):
    observer = observer_of(heavy_tailed, percentile=99.0)
    grid = choose_grid(observer, 8, RangeMethod.PERCENTILE)
    assert grid.upper == pytest.approx(float(heavy_tailed.quantile(0.99)), abs=grid.scale)
    assert clipped_share(observer, grid) == pytest.approx(0.02, abs=0.005)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_no_range_of_a_dense_search_beats_mse_by_much(heavy_tailed, bits, free):
    found = error_of(heavy_tailed, choose_grid(observer_of(heavy_tailed), bits, RangeMethod.MSE, free=free))
    make = Grid.free if free else Grid.from_range
    lowers, uppers = (-25 * np.geomspace(1, 0.02, 25), 60 * np.geomspace(1, 0.02, 30))
    best = min(error_of(heavy_tailed, make(lower, upper, bits)) for lower in lowers for upper in uppers)
    minmax = error_of(heavy_tailed, choose_grid(observer_of(heavy_tailed), bits, RangeMethod.MINMAX, free=free))
    assert found <= minmax * (1 + 1e-6)
    assert found <= best * 1.03


@pytest.mark.parametrize("method", [RangeMethod.MINMAX, RangeMethod.MSE, RangeMethod.PERCENTILE])
def test_an_input_after_relu_keeps_zero_as_its_first_level(method):
    values = torch.randn(5000, generator=torch.Generator().manual_seed(1)).relu()
    grid = choose_grid(observer_of(values, 99.9), 4, method)
    assert (grid.zero_point, grid.lower) == (0, 0.0)


@pytest.mark.parametrize("method", [RangeMethod.MINMAX, RangeMethod.MSE, RangeMethod.PERCENTILE])
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("constant", [0.0, 3.0, -2.0, 1e-42])
def test_a_constant_input_gets_a_grid_that_holds_it(method, free, constant):
    observer = observer_of(torch.full((7,), constant), 99.0)
    grid = choose_grid(observer, 4, method, free=free)
    assert grid.fake_quantize(np.array([constant], np.float32))[0] == pytest.approx(constant, rel=1e-6, abs=1e-38)


@pytest.mark.parametrize("method", [RangeMethod.MINMAX, RangeMethod.MSE])
def test_power_of_two_scales_are_powers_of_two(heavy_tailed, method):
    assert choose_grid(observer_of(heavy_tailed), 4, method, power_of_two=True).is_power_of_two


def test_the_mismatch_is_the_relative_error(heavy_tailed):
    grid = Grid.from_range(-3.0, 3.0, 4)
    expected = np.sqrt(error_of(heavy_tailed, grid) / float(heavy_tailed.square().sum()))
    assert relative_mismatch(observer_of(heavy_tailed), grid) == pytest.approx(expected, rel=0.01)


def test_the_clipped_share_counts_what_lies_beyond_the_grid():
    observer = observer_of(torch.tensor([-5.0, -1.0, 0.0, 1.0, 2.0, 3.0, 9.0, 10.0]))
    assert clipped_share(observer, Grid.from_range(-1.0, 4.0, 8)) == 3 / 8
    assert clipped_share(observer, Grid.from_range(-5.0, 10.0, 8)) == 0


def test_an_unseen_layer_is_refused():
    with pytest.raises(InputError, match="nothing is known of the input of layer"):
        choose_grid(InputObserver("layer"), 4, RangeMethod.MINMAX)
