"""What a model.pt costs: byte for byte what the file holds, and the papers' figures for the papers' networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from odm_deploy.accounting import account, body_policy, float_shares
from odm_deploy.checkpoint import save_model
from odm_deploy.errors import InputError, UsageError
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.model import freeze
from tests.factories import model_of_all_kinds, quantized, tiny_model, tiny_network
from tests.foreign_networks import seeded

OUTPUT_PX = (48, 64)


def bytes_in(document: dict) -> int:
    """Bytes of all tensors of a model.pt, four for each number of a grid."""
    total = sum(value.numel() * value.element_size() for value in document["tensors"].values())
    for layer in document["layers"].values():
        values = [layer["bias"], layer["weight"]["packed"], layer["weight"]["scale"]]
        total += sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
        total += 4 * (len(layer["grid"]) - 1)  # the width is no stored number
    return total


@pytest.mark.parametrize("model", [tiny_model(4), model_of_all_kinds(power_of_two=False)], ids=["4 bit", "all kinds"])
def test_honest_storage_is_what_the_file_holds(model, tmp_path):
    save_model(model, tmp_path / "model.pt")
    document = torch.load(tmp_path / "model.pt", weights_only=True)
    assert account(model, output_px=OUTPUT_PX).storage_bytes == bytes_in(document)


@pytest.mark.parametrize("convention", ["honest", "paper"])
@pytest.mark.parametrize("name", ["edsr", "swinir"])
def test_a_model_costs_what_was_planned_for_it(name, convention):
    network = tiny_network(name)
    policy = body_policy(4)
    body = policy.select(network)
    model = quantized(network, lambda _, layer: (4, "asymmetric", "per_channel") if layer in body else None)
    planned = account(network, policy, convention=convention, output_px=OUTPUT_PX)
    found = account(model, convention=convention, output_px=OUTPUT_PX)
    assert found.layers == planned.layers


def test_mixed_widths_count_layer_by_layer():
    model = quantized(
        tiny_network(), lambda index, _: (2 + index % 7, "free" if index % 2 else "symmetric", "per_layer")
    )
    costs = {cost.name: cost for cost in account(model, output_px=OUTPUT_PX).layers}
    for name, layer in model.layers.items():
        cost = costs[name]
        assert cost.bit_operations == 2 * cost.macs * layer.weight_bits * layer.grid.bits
        assert (cost.weight_bits, cost.activation_bits) == (layer.weight_bits, layer.grid.bits)
        words = layer.bias.numel() + 1 + (3 if layer.grid.is_free else 2)
        assert cost.storage_bits == 8 * -(-layer.codes.numel() * layer.weight_bits // 8) + 32 * words


def test_edsr_baseline_at_2_bits_is_table_4():
    """Hong & Lee, ECCV 2024, Table 4: 411.7 K words and 215.1 tera bit operations."""
    network = build_network("edsr", {"scale": 4})
    body = body_policy(2).select(network)
    model = quantized(network, lambda _, layer: (2, "asymmetric", "per_channel") if layer in body else None)
    cost = account(model, convention="paper")
    assert cost.storage_words / 1e3 == pytest.approx(411.7, abs=0.051)
    assert cost.bit_operations / 1e12 == pytest.approx(215.1, abs=0.051)


def test_foreign_networks_count_too_and_say_when_they_cannot():
    class Stubborn(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) * float(x.mean() > 0)

    cost = account(freeze(foreign_network(seeded()), {}), output_px=OUTPUT_PX)
    first = next(each for each in cost.layers if each.name == "net.first")
    assert first.macs == 24 * 32 * 3 * 8 * 9
    with pytest.raises(InputError, match="cannot count the operations of foreign"):
        account(freeze(foreign_network(Stubborn()), {}), output_px=OUTPUT_PX)


def test_what_does_not_divide_full_hd_counts_a_little_less():
    model = freeze(foreign_network(seeded(scale=7)), {})
    assert account(model).output_px == (1078, 1918)
    assert sum(share.macs_share for share in float_shares(model)) == pytest.approx(1.0)


def test_networks_of_whole_windows_count_at_a_size_that_has_them():
    class Windowed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x.reshape(1, 3, x.shape[2] // 16, 16, x.shape[3] // 16, 16).reshape(x.shape))

    model = freeze(foreign_network(Windowed()), {})
    assert account(model).output_px == (1024, 1920)
    assert [share.name for share in float_shares(model)] == ["net.conv"]


def test_unknown_conventions_and_sizes_are_refused():
    with pytest.raises(UsageError, match="honest"):
        account(tiny_model(4), convention="guess")
    with pytest.raises(UsageError, match="upscales by 2"):
        account(tiny_model(4), output_px=(33, 32))
