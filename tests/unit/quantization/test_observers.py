import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odm_deploy.errors import InputError
from odm_deploy.quantization.observers import Histogram, InputObserver
from tests.grid_strategies import unhurried


def observed(*images: torch.Tensor, percentile: float | None = None) -> InputObserver:
    observer = InputObserver("layer", percentile)
    for image in images:
        observer.add(image)
    return observer


@unhurried
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_a_histogram_does_not_depend_on_the_order_of_arrival(values):
    def histogram(order: list[float]) -> Histogram:
        result = Histogram()
        for value in order:
            result.add(torch.tensor([value]))
        return result

    forth, back, at_once = histogram(values), histogram(values[::-1]), Histogram()
    at_once.add(torch.tensor(values))
    for other in (back, at_once):
        for ours, theirs in zip(forth.occupied(), other.occupied(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert forth.occupied()[1].sum() == len(values)


def test_counts_are_those_of_any_order_in_memory():
    image = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    forms = [image, image.contiguous(memory_format=torch.channels_last), image.mT, image[..., ::2], image[..., 1::2]]
    plain, pixel_by_pixel, turned, even, odd = (observed(form).histogram.occupied() for form in forms)
    for other in (pixel_by_pixel, turned):
        np.testing.assert_array_equal(other, plain)
    assert even[1].sum() + odd[1].sum() == plain[1].sum() == image.numel()


def test_an_image_of_zeros_first_costs_no_resolution():
    histogram = Histogram()
    histogram.add(torch.zeros(3))
    histogram.add(torch.tensor([1e-20]))
    centres, counts = histogram.occupied()
    assert counts.tolist() == [3, 1]
    np.testing.assert_allclose(centres, [0, 1e-20], atol=1e-23)


@unhurried
@given(st.floats(1e-30, 1e30), st.integers(0, 99))
def test_a_histogram_resolves_a_sixteenth_of_an_8_bit_step(largest, seed):
    values = (torch.rand(50, generator=torch.Generator().manual_seed(seed)) * largest).float()
    histogram = Histogram()
    histogram.add(values)
    centres, counts = histogram.occupied()
    found = np.repeat(centres, counts.astype(int))
    step = float(values.max()) / 255
    assert np.abs(found - np.sort(values.numpy())).max() <= step / 16


@pytest.mark.parametrize(
    "values", [[0.0], [1e-45, -1e-45], [1e-38, 3e38], [-3.4e38, 3.4e38], [-1.0, 1.0], [0.5, -0.25]]
)
def test_a_histogram_holds_every_float(values):
    histogram = Histogram()
    histogram.add(torch.tensor(values))
    centres, counts = histogram.occupied()
    assert counts.sum() == len(values)
    assert np.isfinite(centres).all()


def test_bounds_are_those_of_all_images():
    observer = observed(torch.tensor([[-1.0, 2.0]]), torch.tensor([0.5, 7.0]), torch.tensor([-3.0]))
    assert (observer.minimum, observer.maximum, observer.images) == (-3.0, 7.0, 3)


def test_percentiles_are_averaged_over_the_images():
    first, second = torch.linspace(0, 100, 101), torch.linspace(-100, 300, 401)
    lower, upper = observed(first, second, percentile=90.0).percentile_range
    assert lower == pytest.approx((10 - 60) / 2, abs=1e-3)
    assert upper == pytest.approx((90 + 260) / 2, abs=1e-3)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(broken):
    with pytest.raises(InputError, match="the input of layer is not finite"):
        observed(torch.tensor([1.0, broken, 2.0]))
