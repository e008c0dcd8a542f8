"""Flags: part of a layer's state, read without its device."""

import copy

import pytest
import torch
from torch import nn

from training.quantizers.base import SavedFlag


def test_a_flag_is_saved_and_loaded():
    layer, fresh = nn.Sequential(SavedFlag(False)), nn.Sequential(SavedFlag(False))
    layer[0].set(True)
    fresh.load_state_dict(layer.state_dict())
    assert fresh[0].is_set
    fresh.load_state_dict(nn.Sequential(SavedFlag(False)).state_dict())
    assert not fresh[0].is_set


def test_copies_keep_it_and_go_their_own_way():
    flag = SavedFlag(True)
    other = copy.deepcopy(flag)
    other.set(False)
    assert (flag.is_set, bool(flag.value)) == (True, True)
    assert (other.is_set, bool(other.value)) == (False, False)


def test_it_is_read_where_values_cannot_be():
    flag = SavedFlag(True).to("meta")
    with pytest.raises(RuntimeError, match="meta"):
        bool(flag.value)
    assert flag.is_set


def test_asking_does_not_break_a_compiled_graph():
    flag = SavedFlag(True)

    def double_if_set(x):
        return x * 2 if flag.is_set else x

    explanation = torch._dynamo.explain(double_if_set)(torch.ones(2))
    assert explanation.graph_break_count == 0
