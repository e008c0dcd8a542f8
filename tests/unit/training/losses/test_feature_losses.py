import numpy as np
import pytest
import torch

from training.distributed import World
from training.losses.features import mismatch_loss, structured_knowledge_transfer, variance_loss
from training.quantizers.statistics import percentile, row_percentile, thin


def test_variance_is_the_population_deviation_over_everything():
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert variance_loss([(x, x), (2 * x, x)]).item() == pytest.approx(3 * np.std(x.numpy()), rel=1e-5)


def test_structured_knowledge_by_hand():
    # One image, two channels, two pixels. Channel means of squares: (1+9)/2, (4+16)/2 = 5, 10 -> unit vector.
    student = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    ours = np.array([5.0, 10.0]) / np.sqrt(125.0)
    expected = np.mean((ours - np.array([1.0, 0.0])) ** 2)
    assert structured_knowledge_transfer(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_knowledge_is_blind_to_the_scale_of_features():
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert structured_knowledge_transfer(7 * x, x).item() == pytest.approx(0.0, abs=1e-12)


def test_gradient_of_the_mismatch_is_the_unit_error():
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    levels = torch.zeros(2, requires_grad=True)
    mismatch_loss([(x, levels)], World()).backward()
    assert x.grad.tolist() == pytest.approx([0.6, 0.8])
    assert levels.grad is None


def test_no_mismatch_has_no_gradient():
    x = torch.ones(3, requires_grad=True)
    mismatch_loss([(x, torch.ones(3))], World()).backward()
    assert x.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("percent", [0.0, 1.0, 37.3, 99.0, 99.99, 100.0])
def test_percentiles_are_those_of_numpy(percent):
    values = torch.randn(3, 701, generator=torch.Generator().manual_seed(2))
    assert percentile(values, percent).item() == pytest.approx(np.percentile(values.numpy(), percent), abs=1e-6)
    assert row_percentile(values, percent).tolist() == pytest.approx(
        np.percentile(values.numpy(), percent, axis=1).tolist(), abs=1e-6
    )


def test_thinning_keeps_small_tensors_and_bounds_large_ones():
    values = torch.arange(1000.0)
    assert torch.equal(thin(values, 1000), values)
    kept = thin(values, 100)
    assert 50 <= kept.numel() <= 100
    assert kept[0] == 0
