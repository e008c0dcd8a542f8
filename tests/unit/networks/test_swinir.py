"""SwinIR: parameter count, an independent definition, any image size, public keys and their errors."""

from collections import Counter

import numpy as np
import openvino
import pytest
import torch
import torch.nn.functional as F

from odm_deploy.building.cpu_layers import cpu_layers
from odm_deploy.errors import InputError
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.networks.base import Region
from odm_deploy.networks.registry import build_network, network_from_state_dict
from odm_deploy.networks.swinir import SwinIR, SwinirConfig
from odm_deploy.networks.window_attention import (
    merge_windows,
    pad_reflected,
    partition_windows,
    shifted_window_mask,
)
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from tests.factories import lowered, quantized, random_images

MEAN = torch.tensor([0.4488, 0.4371, 0.4040]).reshape(1, 3, 1, 1)


def attention_by_definition(state, prefix, tokens, height, width, *, window, shift, heads):
    """Attention without windows: every pixel looks at every pixel, but for those a window border keeps apart.

    Windows are cells of a grid over the image, displaced by `shift` in every second layer; nothing is rolled.
    """
    y, x = (steps.flatten() for steps in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    cell_y, cell_x = (y - shift).div(window, rounding_mode="floor"), (x - shift).div(window, rounding_mode="floor")
    together = (cell_y[:, None] == cell_y[None, :]) & (cell_x[:, None] == cell_x[None, :])
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    row = torch.where(together, (dy + window - 1) * (2 * window - 1) + dx + window - 1, 0)
    table = state[f"{prefix}.relative_position_bias_table"]
    query, key, value = F.linear(tokens, state[f"{prefix}.qkv.weight"], state[f"{prefix}.qkv.bias"]).chunk(3, -1)
    outputs = []
    size = tokens.shape[-1] // heads
    for head in range(heads):
        channels = slice(head * size, (head + 1) * size)
        logits = query[..., channels] @ key[..., channels].transpose(1, 2) / size**0.5 + table[row, head]
        weights = logits.masked_fill(~together, float("-inf")).softmax(-1)
        outputs.append(weights @ value[..., channels])
    return F.linear(torch.cat(outputs, -1), state[f"{prefix}.proj.weight"], state[f"{prefix}.proj.bias"])


def swinir_by_definition(state, image, config):
    """The lightweight network in plain functions, for sizes that are whole windows. [N, 3, H, W] in 0..255."""
    _, _, height, width = image.shape

    def conv(features, key):
        return F.conv2d(features, state[f"{key}.weight"], state[f"{key}.bias"], padding=1)

    def norm(tokens, key):
        centered = tokens - tokens.mean(-1, keepdim=True)
        variance = centered.square().mean(-1, keepdim=True)
        return centered / (variance + 1e-5).sqrt() * state[f"{key}.weight"] + state[f"{key}.bias"]

    def to_tokens(features):
        return features.flatten(2).transpose(1, 2)

    def to_image(tokens):
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    shallow = conv(image / 255 - MEAN.to(image), "conv_first")
    tokens = norm(to_tokens(shallow), "patch_embed.norm")
    for i in range(config.groups):
        group = tokens
        for j in range(config.depth):
            key = f"layers.{i}.residual_group.blocks.{j}"
            shift = config.window // 2 if j % 2 else 0
            tokens = tokens + attention_by_definition(
                state,
                f"{key}.attn",
                norm(tokens, f"{key}.norm1"),
                height,
                width,
                window=config.window,
                shift=shift,
                heads=config.heads,
            )
            hidden = F.linear(
                norm(tokens, f"{key}.norm2"), state[f"{key}.mlp.fc1.weight"], state[f"{key}.mlp.fc1.bias"]
            )
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
            tokens = tokens + F.linear(hidden, state[f"{key}.mlp.fc2.weight"], state[f"{key}.mlp.fc2.bias"])
        tokens = group + to_tokens(conv(to_image(tokens), f"layers.{i}.conv"))
    deep = conv(to_image(norm(tokens, "norm")), "conv_after_body") + shallow
    return (F.pixel_shuffle(conv(deep, "upsample.0"), config.scale) + MEAN.to(image)) * 255


def small(scale=4, **changes):
    """A small network whose attention is far from uniform."""
    torch.manual_seed(0)
    sizes = {"channels": 12, "groups": 2, "depth": 2, "heads": 3, "window": 4, "hidden": 10, **changes}
    network = SwinIR(SwinirConfig(scale, **sizes)).eval()
    for name, parameter in network.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=1.0 if name.endswith("table") else parameter.shape[1] ** -0.5)
        elif "norm" in name:
            torch.nn.init.uniform_(parameter, -1, 2)
    return network


@pytest.mark.parametrize(("scale", "count"), [(2, 910_152), (3, 918_267), (4, 929_628)])
def test_published_parameter_counts(scale, count):
    with torch.device("meta"):
        network = build_network("swinir", {"scale": scale})
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize(
    ("scale", "changes", "size"),
    [
        (2, {}, (8, 12)),
        (3, {}, (12, 4)),
        (4, {"window": 8, "heads": 2}, (16, 24)),
        (4, {"window": 5, "depth": 3}, (10, 15)),
        (2, {"channels": 8, "heads": 1, "groups": 1, "depth": 1}, (4, 4)),
    ],
)
@torch.no_grad()
def test_equals_the_definition(scale, changes, size):
    network = small(scale, **changes).double()
    x = torch.rand(2, 3, *size, dtype=torch.float64) * 255
    found = network(x)
    assert found.shape == (2, 3, size[0] * scale, size[1] * scale)
    torch.testing.assert_close(found, swinir_by_definition(network.state_dict(), x, network.config), rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(5, 9), (7, 8), (3, 30)])
@torch.no_grad()
def test_other_sizes_are_reflected_to_whole_windows_and_cropped(size):
    network = small().double()
    x = torch.rand(1, 3, *size, dtype=torch.float64) * 255
    missing = [-side % 4 for side in size]
    whole = F.pad(x, (0, missing[1], 0, missing[0]), mode="reflect")
    expected = swinir_by_definition(network.state_dict(), whole, network.config)[..., : 4 * size[0], : 4 * size[1]]
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 3)])
@torch.no_grad()
def test_images_smaller_than_a_window_keep_their_shape(size):
    network = small(window=8)
    y = network(torch.full((1, 3, *size), 128.0))
    assert y.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert torch.isfinite(y).all()


@pytest.mark.parametrize(("size", "expected"), [(1, [0] * 8), (2, [0, 1] * 4), (3, [0, 1, 2, 1, 0, 1, 2, 1])])
def test_tiny_images_are_reflected_back_and_forth(size, expected):
    column = torch.arange(float(size)).reshape(1, 1, size, 1)
    padded = pad_reflected(column, 1, 1, 8)
    assert padded.shape == (1, 1, 8, 8)
    assert padded[0, 0, :, 3].tolist() == expected


def test_windows_are_partitioned_and_merged_without_loss():
    x = torch.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    windows = partition_windows(x, 2, 3, 4)
    assert torch.equal(windows[4], x[0, 4:8, 4:8].reshape(16, 3))
    assert torch.equal(merge_windows(windows, 2, 3, 4), x)


def test_only_windows_at_the_border_are_masked():
    mask = shifted_window_mask(2, 3, 4, 2, like=torch.zeros(1))
    assert mask.shape == (6, 16, 16)
    assert torch.equal(mask, mask.transpose(1, 2))
    assert [bool(window.any()) for window in mask] == [False, False, True, True, True, True]
    # In the last window to the right the two left columns do not see the two right ones, and nothing else is apart.
    left = torch.tensor([1, 1, 0, 0] * 4, dtype=torch.bool)
    assert torch.equal(mask[2] != 0, left[:, None] != left[None, :])


@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_state_dict_describes_the_network(scale):
    network = small(scale, groups=1, depth=3)
    again = network_from_state_dict("swinir", network.state_dict(), scale)
    assert again.config == network.config
    x = torch.rand(1, 3, 6, 5) * 255
    assert torch.equal(again(x), network(x))


def test_constants_in_public_files_are_dropped():
    network = small(window=8, groups=1)
    steps = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")).flatten(1)
    difference = steps[:, :, None] - steps[:, None, :] + 7
    block = "layers.0.residual_group.blocks"
    constants = {
        f"{block}.0.attn.relative_position_index": difference[0] * 15 + difference[1],
        f"{block}.1.attn_mask": torch.zeros(64, 64, 64),
    }
    again = network_from_state_dict("swinir", {**network.state_dict(), **constants}, 4)
    assert set(again.state_dict()) == set(network.state_dict())
    constants[f"{block}.0.attn.relative_position_index"] = difference[0] * 15 - difference[1]
    with pytest.raises(InputError, match=r"relative_position_index.*8-pixel windows"):
        network_from_state_dict("swinir", {**network.state_dict(), **constants}, 4)


def test_public_keys():
    layers = {key.rpartition(".")[0] for key in small(groups=1, depth=1).state_dict()}
    block = "layers.0.residual_group.blocks.0"
    parts = {f"{block}.{part}" for part in ("norm1", "attn", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")}
    rest = {"conv_first", "patch_embed.norm", "layers.0.conv", "norm", "conv_after_body", "upsample.0"}
    assert layers == parts | rest


def test_another_networks_weights_are_refused():
    with pytest.raises(InputError, match=r"not a SwinIR state dict.*head\.0\.weight"):
        network_from_state_dict("swinir", {"head.0.weight": torch.zeros(64, 3, 3, 3)}, 4)


def test_another_kind_of_swinir_is_refused():
    state = {**small().state_dict(), "conv_last.weight": torch.zeros(3, 64, 3, 3)}
    with pytest.raises(InputError, match=r"another kind of SwinIR.*SwinIR-light"):
        network_from_state_dict("swinir", state, 4)


def test_another_scale_is_refused():
    with pytest.raises(InputError, match="weights of SwinIR x3: scale 4 was asked for"):
        network_from_state_dict("swinir", small(3).state_dict(), 4)


def test_a_missing_key_is_named():
    state = small().state_dict()
    del state["layers.1.residual_group.blocks.0.attn.proj.bias"]
    with pytest.raises(InputError, match=r"1 missing \(layers\.1\.residual_group\.blocks\.0\.attn\.proj\.bias"):
        network_from_state_dict("swinir", state, 4)


@pytest.mark.parametrize("changes", [{"scale": 8}, {"heads": 7}, {"window": 1}, {"depth": 0}, {"hidden": 0}])
def test_impossible_hyper_parameters_are_refused(changes):
    with pytest.raises(InputError, match="no such SwinIR"):
        SwinirConfig(**{"scale": 4, **changes})


def test_the_papers_region_is_all_linears_and_the_convolutions_of_the_groups():
    network = small(groups=2, depth=2)
    selected = QuantizationPolicy(body=LayerBits(4, 4)).select(network)
    assert len(selected) == 2 * (2 * 4 + 1)
    assert {name.rpartition(".")[2] for name in selected} == {"qkv", "proj", "fc1", "fc2", "conv"}
    assert network.region_of("conv_first") is Region.HEAD
    assert network.region_of("conv_after_body") is Region.BODY_END
    assert network.region_of("upsample.0") is Region.TAIL
    with pytest.raises(InputError, match="no layer tail"):
        network.region_of("tail.0")


def test_openvino_adds_what_linear_layers_add_in_their_kernels():
    # It does so with products of three dimensions only; of four, a pass over all tokens followed each perceptron's.
    # At 7 bits nothing saturates, on any CPU.
    model = lowered(quantized(small(), lambda *_: (7, "asymmetric", "per_channel")), target="cpu")
    layers = cpu_layers("openvino", model.SerializeToString(), model, InputShapes.static(1, 16, 16)).records
    kinds = Counter(layer.kind for layer in layers)
    assert sum(layer.precision == "int8" for layer in layers if layer.kind == "FullyConnected") == 24
    assert not kinds["Eltwise"]


def test_openvino_computes_one_size_as_it_does_all():
    # Indices of reflected borders that it knew at compilation stayed negative: the picture was another one.
    model = lowered(quantized(small(), lambda *_: (8, "asymmetric", "per_channel")), target="cpu")
    image = random_images(18, 21)
    core, settings = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    read = core.read_model(model.SerializeToString())
    dynamic = core.compile_model(read, "CPU", settings)(image)[0]
    read.reshape({"input": list(image.shape)})
    fixed = core.compile_model(read, "CPU", settings)(image)[0]
    assert np.abs(fixed - dynamic).mean() < 0.5
