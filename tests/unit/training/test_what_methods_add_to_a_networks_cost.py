"""The ODM papers' figures for methods with gates, statistics and offsets, EDSR-baseline x4 at two bits."""

import pytest
import torch

from odm_deploy.accounting import account, accounted_network, body_policy
from odm_deploy.networks.registry import build_network
from training.methods.registry import build_method
from training.overhead import calibrated_on_noise, with_overhead


def cost_of(options, convention="paper"):
    torch.manual_seed(1)
    policy = body_policy(2)
    assert policy is not None
    model = calibrated_on_noise(build_network("edsr", {"scale": 4}), policy, build_method(options))
    plain = account(accounted_network("edsr", 4, convention), policy, convention=convention)
    return plain, with_overhead(plain, model, convention)


@pytest.mark.parametrize(
    ("method", "kwords", "tera"),
    [("lsq", 411.7, 215.1), ("pams", 411.7, 215.1), ("ddtb", 413.4, 215.1), ("daq", 411.7, 215.6)],
)
def test_printed_figures(method, kwords, tera):
    _, cost = cost_of({"name": method})
    assert (round(cost.storage_words / 1e3, 1), round(cost.bit_operations / 1e12, 1)) == (kwords, tera)


def test_offsets_of_ten_layers_each():
    plain, cost = cost_of({"name": "odm_v1"})
    # Twenty vectors of 64 codes of 4 bits; the paper prints ten. A gain is a multiplication, a shift costs nothing.
    assert cost.storage_words - plain.storage_words == 20 * 64 * 4 / 32
    assert cost.bit_operations - plain.bit_operations == 10 * 64 * 480 * 270 * 4 * 32


def test_scales_of_offsets_count_in_the_honest_convention():
    plain, cost = cost_of({"name": "odm_v1"}, "honest")
    assert cost.storage_words - plain.storage_words == 20 * (64 * 4 / 32 + 1)


def test_without_gates_and_offsets_nothing_is_added():
    for options in ({"name": "ddtb", "gate_share": 0.0}, {"name": "odm_v1", "offset_share": 0.0}):
        plain, cost = cost_of(options)
        assert cost.layers == plain.layers
