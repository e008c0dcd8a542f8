import numpy as np
import pytest
import torch

from training.quantizers import statistics
from training.quantizers.statistics import row_percentile


@pytest.mark.parametrize("percent", [0.0, 1.0, 50.0, 99.0, 100.0])
@pytest.mark.parametrize("by_sorting", [False, True])
def test_percentiles_are_numpys_however_values_are_found(percent, by_sorting, monkeypatch):
    """GPUs sort where CPUs select."""
    find = statistics._in_order
    monkeypatch.setattr(
        statistics, "_in_order", lambda values, wanted, **_: find(values, wanted, by_sorting=by_sorting)
    )
    values = torch.randn(3, 501, generator=torch.Generator().manual_seed(1))
    expected = np.percentile(values.numpy().astype(np.float64), percent, axis=1)
    np.testing.assert_allclose(row_percentile(values, percent), expected, rtol=1e-6, atol=1e-7)
