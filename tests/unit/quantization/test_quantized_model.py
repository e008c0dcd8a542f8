import pytest
import torch

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import freeze
from odm_deploy.quantization.weights import quantize_weight


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_network("edsr", {"scale": 2, "features": 4, "blocks": 1})


def frozen_layer(network, name, grid=None):
    conv = network.get_submodule(name)
    return FrozenLayer(quantize_weight(conv.weight, 8), grid or Grid.from_range(-150.0, 150.0, 8), conv.bias)


def test_freezing_leaves_the_float_network_alone(network):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    model = freeze(network, {"body.0.body.0": frozen_layer(network, "body.0.body.0")}, {"from": "a test"})
    assert list(model.layers) == ["body.0.body.0"]
    assert model.scale == 2
    assert model.metadata == {"from": "a test"}
    assert not model.network.training
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_fine_grids_come_close_to_the_float_network(network):
    names = ["body.0.body.0", "body.0.body.2"]
    model = freeze(network, {name: frozen_layer(network, name) for name in names})
    x = torch.rand(1, 3, 6, 7) * 255
    with torch.no_grad():
        expected = network(x)
    assert model(x).shape == (1, 3, 12, 14)
    assert not torch.equal(model(x), expected)
    assert float((model(x) - expected).abs().mean()) < 0.5


def test_double_computes_in_float64_and_leaves_the_model_in_float32(network):
    model = freeze(network, {"body.0.body.0": frozen_layer(network, "body.0.body.0")})
    x = torch.rand(1, 3, 5, 5) * 255
    assert model.double()(x.double()).dtype == torch.float64
    assert model(x).dtype == torch.float32


def test_an_unknown_layer_is_refused(network):
    with pytest.raises(InputError, match=r"edsr has no layer body\.7"):
        freeze(network, {"body.7": frozen_layer(network, "body.0.body.0")})
