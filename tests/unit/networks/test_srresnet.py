"""SRResNet: parameter count, an independent definition, folding of batch norms, public keys and their errors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odm_deploy.errors import InputError
from odm_deploy.networks.base import Region
from odm_deploy.networks.registry import build_network, network_from_state_dict
from odm_deploy.networks.srresnet import SRResNet, SrresnetConfig
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy


def srresnet_by_definition(state, x, *, scale, blocks):
    """The public network in plain functions, batch norms unfolded and in evaluation mode."""

    def conv(features, key):
        weight = state[f"{key}.weight"]
        return F.conv2d(features, weight, padding=weight.shape[-1] // 2)

    def norm(features, key):
        mean, variance, gamma, beta = (
            state[f"{key}.{part}"].reshape(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (features - mean) / (variance + 1e-5) ** 0.5 * gamma + beta

    def prelu(features, key):
        return torch.where(features > 0, features, features * state[f"{key}.weight"])

    shallow = prelu(conv(x, "conv_input"), "relu")
    y = shallow
    for i in range(blocks):
        inner = prelu(norm(conv(y, f"residual.{i}.conv1"), f"residual.{i}.in1"), f"residual.{i}.relu")
        y = y + norm(conv(inner, f"residual.{i}.conv2"), f"residual.{i}.in2")
    y = norm(conv(y, "conv_mid"), "bn_mid") + shallow
    for index, factor in enumerate([2, 2] if scale == 4 else [scale]):
        y = prelu(F.pixel_shuffle(conv(y, f"upscale.{3 * index}"), factor), f"upscale.{3 * index + 2}")
    return conv(y, "conv_output")


def public(scale=4, **changes):
    """An unfolded network whose batch norms and slopes have seen some training, and whose outputs are image-like."""
    torch.manual_seed(0)
    config = SrresnetConfig(scale, **{"features": 6, "blocks": 3, "folded": False, **changes})
    network = SRResNet(config).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 2)
            module.running_var.uniform_(0.2, 4)
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.2, 0.4)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=(module.weight[0].numel()) ** -0.5)
    return network


def folded(network):
    """A copy without batch norms."""
    copied = copy.deepcopy(network)
    copied.fold_batch_norms()
    return copied


def test_published_parameter_count():
    with torch.device("meta"):
        network = build_network("srresnet", {"scale": 4, "folded": False})
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_546_771


@pytest.mark.parametrize(("scale", "changes"), [(2, {}), (3, {}), (4, {}), (4, {"features": 3, "blocks": 1})])
@torch.no_grad()
def test_equals_the_definition_folded_and_unfolded(scale, changes):
    network = public(scale, **changes).double()
    x = torch.rand(2, 3, 9, 13, dtype=torch.float64) * 255
    expected = srresnet_by_definition(network.state_dict(), x, scale=scale, blocks=network.config.blocks)
    assert expected.shape == (2, 3, 9 * scale, 13 * scale)
    tolerance = 1e-12 * float(expected.abs().max())
    torch.testing.assert_close(network(x), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(folded(network)(x), expected, rtol=0, atol=tolerance)


@torch.no_grad()
def test_folding_in_float32_costs_a_rounding():
    network = public()
    plain = folded(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    x = torch.rand(1, 3, 12, 10) * 255
    expected = network(x)
    torch.testing.assert_close(plain(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_folding_twice_changes_nothing_and_the_config_rebuilds_the_structure():
    network = folded(public())
    assert network.config.folded
    before = copy.deepcopy(network.state_dict())
    network.fold_batch_norms()
    after = network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], value) for key, value in after.items())
    rebuilt = SRResNet(network.config)
    assert list(rebuilt.state_dict()) == list(after)
    assert [name for name, _ in rebuilt.named_parameters()] == [name for name, _ in network.named_parameters()]


@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_public_weights_load_folded(scale):
    network = public(scale)
    loaded = network_from_state_dict("srresnet", network.state_dict(), scale)
    assert loaded.config == SrresnetConfig(scale, features=6, blocks=3, folded=True)
    x = torch.rand(1, 3, 7, 8) * 255
    assert torch.equal(loaded(x), folded(network)(x))
    # What is folded is a state dict of its own, and a config from which model.pt can rebuild the structure.
    again = network_from_state_dict("srresnet", loaded.state_dict(), scale)
    assert torch.equal(again(x), loaded(x))
    assert set(build_network("srresnet", vars(loaded.config)).state_dict()) == set(loaded.state_dict())


def test_public_weights_load_unfolded_for_training():
    network = public()
    loaded = network_from_state_dict("srresnet", network.state_dict(), 4, {"folded": False})
    assert isinstance(loaded.bn_mid, nn.BatchNorm2d)
    x = torch.rand(1, 3, 6, 6) * 255
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))


def test_files_without_batch_counters_load():
    state = {key: value for key, value in public().state_dict().items() if not key.endswith("num_batches_tracked")}
    assert network_from_state_dict("srresnet", state, 4).config.folded


@torch.no_grad()
def test_weights_trained_on_unit_range_images_are_scaled_inside():
    state = public().state_dict()
    unit = network_from_state_dict("srresnet", state, 4, {"input_range": 1.0}).double()
    full = network_from_state_dict("srresnet", state, 4).double()
    x = torch.rand(1, 3, 6, 7, dtype=torch.float64) * 255
    torch.testing.assert_close(unit(x), 255 * full(x / 255), rtol=1e-12, atol=1e-9)
    assert not torch.allclose(unit(x), full(x), rtol=1e-3)


def test_public_keys():
    layers = {key.rpartition(".")[0] for key in public(blocks=1).state_dict()}
    block = {f"residual.0.{part}" for part in ("conv1", "in1", "relu", "conv2", "in2")}
    rest = {"conv_input", "relu", "conv_mid", "bn_mid", "conv_output"}
    assert layers == block | rest | {f"upscale.{i}" for i in (0, 2, 3, 5)}


def test_another_networks_weights_are_refused():
    with pytest.raises(InputError, match=r"not an SRResNet state dict.*head\.0\.weight"):
        network_from_state_dict("srresnet", {"head.0.weight": torch.zeros(64, 3, 3, 3)}, 4)


def test_another_scale_is_refused():
    with pytest.raises(InputError, match="weights of SRResNet x2: scale 4 was asked for"):
        network_from_state_dict("srresnet", public(2).state_dict(), 4)


@pytest.mark.parametrize("key", ["residual.1.in2.running_var", "residual.0.conv1.weight", "conv_output.weight"])
def test_a_missing_key_is_named(key):
    state = public().state_dict()
    del state[key]
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        network_from_state_dict("srresnet", state, 4)


def test_folded_weights_do_not_pass_as_unfolded_ones():
    state = folded(public()).state_dict()
    with pytest.raises(InputError, match=r"missing \(residual\.0\.in1\.weight"):
        network_from_state_dict("srresnet", state, 4, {"folded": False})


@pytest.mark.parametrize(
    "changes", [{"scale": 8}, {"features": 0}, {"blocks": 0}, {"input_range": 0.0}, {"input_range": float("nan")}]
)
def test_impossible_hyper_parameters_are_refused(changes):
    with pytest.raises(InputError, match="no such SRResNet"):
        SrresnetConfig(**{"scale": 4, **changes})


def test_the_papers_region_is_the_blocks():
    network = build_network("srresnet", {"scale": 4, "features": 4, "blocks": 2})
    selected = QuantizationPolicy(body=LayerBits(4, 4)).select(network)
    assert list(selected) == [f"residual.{i}.conv{part}" for i in (0, 1) for part in (1, 2)]
    assert network.region_of("conv_input") is Region.HEAD
    assert network.region_of("conv_mid") is Region.BODY_END
    assert network.region_of("upscale.3") is network.region_of("conv_output") is Region.TAIL
    with pytest.raises(InputError, match="no layer tail"):
        network.region_of("tail.0")
