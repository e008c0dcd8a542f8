"""Broken gradients are refused by name."""

import pytest
import torch

from odm_deploy.errors import InputError
from training.loop.diagnostics import check_finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_parameter_with_a_broken_gradient_is_named(value):
    gradients = {name: torch.ones(3, 4) for name in ("head", "body", "tail")}
    check_finite(gradients, 7)
    gradients["body"][1, 2] = value
    with pytest.raises(InputError, match=r"iteration 7.*gradient of body is not finite"):
        check_finite(gradients, 7)


def test_gradients_too_large_to_add_up_are_no_better():
    with pytest.raises(InputError, match="all together"):
        check_finite({"head": torch.full((10,), 3e38)}, 0)
