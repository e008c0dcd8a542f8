import pytest
import torch

from odm_deploy.errors import InputError
from odm_deploy.networks.registry import build_network, network_from_state_dict
from odm_deploy.networks.state_dict import load_state


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network("edsr", {"scale": 2, "features": 4, "blocks": 1})


@pytest.fixture
def state(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def assert_same_tensors(found, expected):
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_loads_every_key_and_turns_half_precision_into_float(network, state):
    fresh = build_network("edsr", {"scale": 2, "features": 4, "blocks": 1})
    load_state(fresh, {key: value.half() for key, value in state.items()})
    for key, value in fresh.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].half().float())


def test_mean_shifts_may_be_missing(state):
    for key in ("sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias"):
        del state[key]
    network = network_from_state_dict("edsr", state, 2)
    torch.testing.assert_close(network.get_buffer("add_mean.bias"), 255 * torch.tensor([0.4488, 0.4371, 0.4040]))


def delete(state):
    del state["body.0.body.2.bias"]


def add(state):
    state["body.7.extra"] = torch.zeros(1)


def transpose(state):
    state["tail.1.weight"] = state["tail.1.weight"].transpose(0, 1).contiguous()


def reshape(state):
    state["tail.1.bias"] = torch.zeros(5)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (delete, r"1 missing \(body\.0\.body\.2\.bias\)"),
        (add, r"1 unexpected \(body\.7\.extra\)"),
        (transpose, r"tail\.1\.weight is \[4, 3, 3, 3\], expected \[3, 4, 3, 3\] \(input and output channels swapped"),
        (reshape, r"tail\.1\.bias is \[5\], expected \[3\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_key(network, state, break_it, reason):
    break_it(state)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(InputError, match=f"the weights do not fit EDSR: .*{reason}"):
        load_state(network, state)
    assert_same_tensors(network.state_dict(), before)


def test_long_lists_of_keys_are_cut_short(network):
    with pytest.raises(InputError, match=r"12 missing \(head\.0\.weight, .* \.\.\.\); 1 unexpected") as caught:
        load_state(network, {"nothing": torch.zeros(1)})
    assert len(str(caught.value)) < 300
