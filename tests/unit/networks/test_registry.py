import dataclasses

import pytest
import torch

from odm_deploy.errors import InputError, UsageError
from odm_deploy.networks.registry import build_network, network_from_state_dict, network_names

SMALL = {"scale": 2, "features": 4, "blocks": 1}


def test_every_name_has_a_network_of_that_name():
    assert "edsr" in network_names()
    for name in network_names():
        with torch.device("meta"):
            assert build_network(name, {"scale": 4}).name == name


def test_a_network_made_of_weights_computes_what_the_weights_did():
    network = build_network("edsr", SMALL).eval()
    copy = network_from_state_dict("edsr", network.state_dict(), 2)
    x = torch.rand(1, 3, 5, 6) * 255
    assert not copy.training
    assert copy.config == network.config
    assert torch.equal(copy(x), network(x))


def test_overrides_set_what_a_state_dict_does_not_show():
    state = build_network("edsr", SMALL).state_dict()
    network = network_from_state_dict("edsr", state, 2, {"residual_scale": 0.5})
    assert dataclasses.asdict(network.config).items() >= {**SMALL, "residual_scale": 0.5}.items()


@pytest.mark.parametrize(
    "build", [lambda name: build_network(name, SMALL), lambda name: network_from_state_dict(name, {}, 2)]
)
def test_an_unknown_name_is_refused_with_the_known_ones(build):
    with pytest.raises(UsageError, match=r"no network 'vgg': known by name are .*edsr"):
        build("vgg")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"scale": 2, "colour": "red"}, r"unknown keys \['colour'\]"),
        ({"features": 4}, r"missing keys \['scale'\]"),
        ({"scale": "2"}, "scale = '2' is not a whole number"),
        ({"scale": 2, "blocks": True}, "blocks = True is not a whole number"),
        ({"scale": 2, "residual_scale": "1"}, "residual_scale = '1' is not a number"),
    ],
)
def test_hyper_parameters_that_do_not_fit_are_refused(config, reason):
    with pytest.raises(InputError, match=reason):
        build_network("edsr", config)


def test_an_override_that_does_not_fit_is_refused():
    state = build_network("edsr", SMALL).state_dict()
    with pytest.raises(UsageError, match=r"unknown keys \['colour'\]"):
        network_from_state_dict("edsr", state, 2, {"colour": "red"})
    with pytest.raises(UsageError, match=r"cannot use features = 8: the weights show 4; leave it out"):
        network_from_state_dict("edsr", state, 2, {"features": 8})


@pytest.mark.parametrize(
    ("key", "shape"), [("head.0.weight", ()), ("tail.0.0.weight", (9,)), ("head.0.weight", (0, 3, 3, 3))]
)
def test_weights_of_another_rank_are_refused(key, shape):
    state = build_network("edsr", SMALL).state_dict()
    state[key] = torch.zeros(shape)
    with pytest.raises(InputError):
        network_from_state_dict("edsr", state, 2)
