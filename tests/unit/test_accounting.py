"""Accounting: against closed formulas, against what model.pt really holds, and against the published Table 4."""

import pytest
import torch
from torch import nn

from odm_deploy.accounting import account, accounted_network, body_policy, count_macs
from odm_deploy.checkpoint import save_model
from odm_deploy.errors import InputError, UsageError
from odm_deploy.grid import Grid
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import freeze
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.weights import quantize_weight

SMALL = {
    "edsr": {"scale": 4, "features": 5, "blocks": 2},
    "rdn": {"scale": 3, "blocks": 2, "convolutions": 2, "growth": 4, "features": 6},
    "srresnet": {"scale": 2, "features": 5, "blocks": 2},
    "swinir": {"scale": 2, "channels": 6, "groups": 1, "depth": 2, "heads": 2, "window": 4, "hidden": 7},
}

# Hong & Lee, ECCV 2024, Table 4: storage in thousands of words, tera bit operations.
TABLE_4 = [
    ("edsr", 32, 1517.6, 526.4),
    ("edsr", 2, 411.7, 215.1),
    ("rdn", 32, 22271.1, 6032.9),
    ("rdn", 2, 1715.9, 236.6),
    ("srresnet", 32, 1546.8, 588.8),
    ("srresnet", 2, 440.9, 276.9),
]


@pytest.mark.parametrize(("name", "bits", "kwords", "tera_operations"), TABLE_4)
def test_the_papers_figures(name, bits, kwords, tera_operations):
    cost = account(accounted_network(name, 4, "paper"), body_policy(bits), convention="paper")
    assert cost.storage_words / 1e3 == pytest.approx(kwords, abs=0.051)
    assert cost.bit_operations / 1e12 == pytest.approx(tera_operations, abs=0.051)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_macs_of_edsr_by_formula(scale):
    features, blocks = 5, 2
    network = build_network("edsr", {"scale": scale, "features": features, "blocks": blocks})
    macs = count_macs(network, (12 * scale, 20 * scale))
    pixels = 12 * 20
    square = 9 * features * features
    assert macs["head.0"] == pixels * 9 * 3 * features
    assert macs["body.1.body.2"] == pixels * square
    upsampling = pixels * square * (4 + 4 * 4 if scale == 4 else scale**2)
    assert sum(macs[f"tail.0.{index}"] for index in ((0, 2) if scale == 4 else (0,))) == upsampling
    body = (2 * blocks + 1) * square
    expected = pixels * (9 * 3 * features + body) + upsampling + pixels * scale**2 * 9 * 3 * features
    assert sum(macs.values()) == expected
    assert macs[""] == macs["body"] == macs["sub_mean"] == 0


def test_macs_of_attention_include_its_products_and_the_padding_to_windows():
    network = build_network("swinir", SMALL["swinir"])
    macs = count_macs(network, (20, 28))  # 10 x 14 input pixels: 12 x 16 after padding, windows of 16 tokens
    pixels, channels, tokens = 12 * 16, 6, 16
    block = "layers.0.residual_group.blocks.1"
    assert macs[f"{block}.attn"] == 2 * pixels * tokens * channels
    assert macs[f"{block}.attn.qkv"] == 3 * pixels * channels**2
    assert macs[f"{block}.mlp.fc2"] == pixels * channels * 7
    assert macs["conv_first"] == pixels * 9 * 3 * channels
    assert min(macs.values()) == 0


def test_bit_operations_follow_each_layers_widths():
    network = build_network("edsr", SMALL["edsr"])
    policy = QuantizationPolicy(LayerBits(2, 3), body_end=LayerBits(8, 8), overrides={"body.0.*": None})
    cost = account(network, policy, output_px=(16, 16))
    widths = {layer.name: (layer.weight_bits, layer.activation_bits) for layer in cost.layers}
    assert widths["head.0"] == widths["body.0.body.0"] == (32, 32)
    assert widths["body.1.body.0"] == (2, 3)
    assert widths["body.2"] == (8, 8)
    square = 16 * 9 * 25
    operations = {layer.name: layer.bit_operations for layer in cost.layers}
    assert operations["body.1.body.0"] == 2 * square * 6
    assert operations["body.2"] == 2 * square * 64
    assert cost.bit_operations == sum(operations.values())


def test_the_papers_exceptions_apply_to_quantized_networks_only():
    network = accounted_network("edsr", 4, "paper")
    layers = {layer.name: layer for layer in account(network, body_policy(2), convention="paper").layers}
    assert (layers["body.0.body.0"].weight_bits, layers["body.0.body.0"].activation_bits) == (2, 32)
    assert (layers["body.0.body.2"].weight_bits, layers["body.0.body.2"].activation_bits) == (2, 2)
    honest = account(network, body_policy(2), convention="honest")
    assert all(layer.activation_bits == layer.weight_bits for layer in honest.layers)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert account(network, convention="paper").storage_words == parameters


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_honest_storage_is_what_model_pt_holds(name, per_channel, tmp_path):
    network = build_network(name, SMALL[name])
    policy = QuantizationPolicy(LayerBits(3, 5), tail=LayerBits(8, 8), per_channel=per_channel)
    modules = dict(network.named_modules())
    layers = {
        layer: FrozenLayer(
            quantize_weight(modules[layer].weight, bits.weight, per_channel=per_channel),
            Grid(0.5, 1, bits.activation),
            modules[layer].bias,
        )
        for layer, bits in policy.select(network).items()
    }
    save_model(freeze(network, layers), tmp_path / "model.pt")
    document = torch.load(tmp_path / "model.pt", weights_only=True)

    def tensor_bytes(content):
        if isinstance(content, dict):
            return sum(map(tensor_bytes, content.values()))
        return content.numel() * content.element_size() if isinstance(content, torch.Tensor) else 0

    grids_bytes = 8 * len(layers)  # a float32 scale and an integer zero point each
    assert account(network, policy).storage_bytes == tensor_bytes(document) + grids_bytes


def test_batch_norm_statistics_count_honestly_but_not_on_paper():
    network = build_network("srresnet", {**SMALL["srresnet"], "folded": False})
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    difference = (
        account(network, convention="honest").storage_words - account(network, convention="paper").storage_words
    )
    assert difference == len(norms) * (2 * 5 + 2)  # running mean and variance, and a 64-bit counter


def test_bad_requests_are_refused():
    network = build_network("edsr", SMALL["edsr"])
    with pytest.raises(UsageError, match=r"1921x1080.*upscales by 4"):
        account(network, output_px=(1080, 1921))
    with pytest.raises(UsageError, match="no convention 'table'"):
        account(network, convention="table")
    with pytest.raises(UsageError, match="no quantization at 16 bits"):
        body_policy(16)
    with pytest.raises(UsageError, match="no network 'vgg'"):
        accounted_network("vgg", 4, "paper")
    with pytest.raises(InputError, match="scale 7"):
        accounted_network("rdn", 7, "paper")


class Shared(nn.Module):
    """A convolution that two parts of the network have, and a tensor that its code makes without asking where."""

    def __init__(self) -> None:
        super().__init__()
        convolution = nn.Conv2d(4, 4, 1)
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
        self.one, self.other = nn.Sequential(convolution, nn.ReLU()), nn.Sequential(nn.ReLU(), convolution)

    def forward(self, x):
        return self.last(self.other(self.one(self.first(x)) + torch.ones(1)))


def test_a_layer_of_two_parts_counts_once_for_each_run():
    macs = count_macs(foreign_network(Shared()), (6, 8))
    pixels = 48
    assert {name: count for name, count in macs.items() if count} == {
        "net.first": pixels * 12, "net.last": pixels * 12, "net.one.0": 2 * pixels * 16
    }  # fmt: skip
