import numpy as np
import pytest
import torch

from training.quantizers import statistics
from training.quantizers.statistics import row_percentile


@pytest.mark.parametrize("percent", [0.0, 1.0, 50.0, 99.0, 100.0])
@pytest.mark.parametrize("on_gpu", [False, True], ids=["as-on-a-cpu", "as-on-a-gpu"])
def test_percentiles_are_numpys_however_values_are_found(percent, on_gpu, monkeypatch):
    """Of long rows GPUs look for the largest few, or sort, where CPUs select."""
    find = statistics._in_order
    monkeypatch.setattr(statistics, "_in_order", lambda values, wanted, **_: find(values, wanted, on_gpu=on_gpu))
    monkeypatch.setattr(statistics, "_LONG_ROW", 100)
    values = torch.randn(3, 501, generator=torch.Generator().manual_seed(1))
    expected = np.percentile(values.numpy().astype(np.float64), percent, axis=1)
    np.testing.assert_allclose(row_percentile(values, percent), expected, rtol=1e-6, atol=1e-7)
