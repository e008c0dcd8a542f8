import math

import pytest
import torch

from training.losses.cooperative import combine_cooperatively, combine_naively, similarity


def test_similarity_of_known_angles():
    a = torch.tensor([1.0, 0.0])
    assert similarity(a, 3 * a).item() == pytest.approx(1.0)
    assert similarity(a, -a).item() == pytest.approx(0.0)
    assert similarity(a, torch.tensor([0.0, 5.0])).item() == pytest.approx(0.5)
    sixty = torch.tensor([0.5, math.sqrt(3) / 2])
    assert similarity(a, sixty).item() == pytest.approx(0.75)


def test_similarity_with_nothing_is_half():
    assert similarity(torch.zeros(3), torch.ones(3)).item() == 0.5


def gradients():
    ours = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([2.0]), "gamma": torch.tensor([5.0])}
    theirs = {"a": torch.tensor([0.0, 4.0]), "b": torch.tensor([-3.0])}
    return ours, theirs


def test_each_tensor_has_its_own_similarity():
    combined = combine_cooperatively(*gradients(), 0.1, "tensor")
    # a: orthogonal, sim 1/2, + 0.1 * 0.5 * 4. b: opposed, sim 0, nothing.
    assert combined["a"].tolist() == pytest.approx([1.0, 0.2])
    assert combined["b"].tolist() == [2.0]


def test_global_similarity_is_that_of_the_concatenation():
    combined = combine_cooperatively(*gradients(), 0.1, "global")
    cosine = (2.0 * -3.0) / (math.sqrt(5) * 5)
    factor = 0.1 * (cosine + 1) / 2
    assert combined["a"].tolist() == pytest.approx([1.0, 4 * factor])
    assert combined["b"].tolist() == pytest.approx([2.0 - 3 * factor])


def test_elementwise_similarity_is_the_sign_rule_of_odm_v1():
    ours = {"a": torch.tensor([1.0, 1.0, -1.0, 0.0])}
    theirs = {"a": torch.tensor([2.0, -2.0, -2.0, 2.0])}
    assert combine_cooperatively(ours, theirs, 0.5, "element")["a"].tolist() == [2.0, 1.0, -2.0, 1.0]


@pytest.mark.parametrize("granularity", ["tensor", "global", "element"])
def test_parameters_outside_the_auxiliary_loss_keep_their_gradient(granularity):
    ours, theirs = gradients()
    assert torch.equal(combine_cooperatively(ours, theirs, 0.1, granularity)["gamma"], ours["gamma"])


def test_naive_combination_adds():
    combined = combine_naively(*gradients(), 0.1)
    assert combined["b"].tolist() == pytest.approx([1.7])
    assert combined["gamma"].tolist() == [5.0]


def test_on_a_toy_problem_conflict_is_left_to_the_reconstruction():
    """Two quadratic losses with opposed minima: cooperative descent ends at the reconstruction's, naive in between."""

    def descend(combine):
        theta = torch.tensor([0.3])
        for _ in range(500):
            ours, theirs = {"t": 2 * (theta - 1.0)}, {"t": 2 * (theta + 1.0)}
            theta = theta - 0.05 * combine(ours, theirs)["t"]
        return theta.item()

    assert descend(lambda a, b: combine_cooperatively(a, b, 0.5, "tensor")) == pytest.approx(1.0, abs=1e-3)
    assert descend(lambda a, b: combine_naively(a, b, 0.5)) == pytest.approx(1 / 3, abs=1e-3)
