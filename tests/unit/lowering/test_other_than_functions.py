"""Networks that are more than a function of the image in float32: refused for that, or exported and proven."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odm_deploy import quantize
from odm_deploy.errors import InputError
from odm_deploy.lowering import tracing
from odm_deploy.lowering.lower import lower
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.runtimes.onnx.onnx_runtime import OnnxRuntime
from tests.factories import random_images

THROUGHOUT = QuantizationPolicy(*[LayerBits(8, 8)] * 4)


class Around(nn.Module):
    """Three convolutions, with something behind the first."""

    def __init__(self, between, part=None):
        super().__init__()
        torch.manual_seed(5)
        self.first, self.body, self.last = (nn.Conv2d(inputs, 12, 3, padding=1) for inputs in (3, 12, 12))
        self.register_buffer("count", torch.zeros(()))
        self.between, self.part = between, part

    def forward(self, x):
        return F.pixel_shuffle(self.last(F.relu(self.body(self.between(self, self.first(x))))), 2)


def counting(net, x):
    net.count += 1
    return x * net.count


def half_precision(net, x):
    return net.part(x.half()).float()


def half_attention(net, x):
    read = net.part(x.half()).flatten(2)
    return (read @ x.half().flatten(2).transpose(1, 2) @ read).reshape(x.shape).float() / 1000


def autocast(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.part(x).float()


def tokens(net, x):
    return net.part(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


def attention(net, x):
    read = x.flatten(2).transpose(1, 2)
    return (read + net.part(read, read, read, need_weights=False)[0]).transpose(1, 2).reshape(x.shape)


def in_training(net, x):
    return F.batch_norm(x, net.part.running_mean, net.part.running_var, training=True)


def without_gradients(net, x):
    with torch.no_grad():
        first, second = net.part(x), x.mean((2, 3), keepdim=True)
        with torch.set_grad_enabled(False):
            first = first * 0.5
    with torch.autocast("cpu", enabled=False):
        return F.relu(first) + second


def own_kernels(net, x):
    count, channels = x.shape[:2]
    kernels = net.part(x.mean((2, 3))).reshape(count * channels, 1, 3, 3)
    found = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, padding=1, groups=count * channels)
    return found.reshape(x.shape)


def grid(_, x):
    same = torch.eye(2, 3).expand(len(x), -1, -1)
    return F.grid_sample(x, F.affine_grid(same, list(x.shape), align_corners=True), align_corners=True)


def images(count=1):
    return [torch.from_numpy(random_images(24, 32, seed=seed)) for seed in range(count)]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Around(lambda _, x: F.dropout(x, 0.5)),
            "something else each time .* it draws random numbers; leave out noise",
        ),
        (Around(counting), r"something else each time .* its buffer net\.count changes; change nothing"),
        (Around(in_training, nn.BatchNorm2d(12)), r"net\.part\.running_mean changes .* batch norm runs in train mode"),
        (
            Around(autocast, nn.Conv2d(12, 12, 1)),
            r"ONNX does not allow .*tensor\(bfloat16\); .* without casts and autocast",
        ),
        (Around(grid), "its code fixes height to 41 and width to 55 while it is traced; compute with tensors' sizes"),
        (Around(lambda _, x: torch.special.bessel_j0(x)), "its operator .*bessel_j0.default has no translation"),
    ],
)
def test_what_no_graph_computes_is_refused_for_what_it_is(module, message):
    with pytest.raises(InputError, match=f"^cannot export .*:Around: .*{message}"):
        lower(quantize(module, THROUGHOUT, images()))


@pytest.mark.parametrize(
    "module",
    [
        Around(half_precision, nn.Conv2d(12, 12, 3, padding=1).half()),
        Around(lambda _, x: x.to(torch.bfloat16).float()),
        Around(tokens, nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)),
        Around(attention, nn.MultiheadAttention(12, 2, batch_first=True)),
        Around(lambda net, x: net.part(x), nn.BatchNorm2d(12, track_running_stats=False)),
        Around(tokens, nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12))),
        Around(without_gradients, nn.Conv2d(12, 12, 1)),
        Around(own_kernels, nn.Linear(12, 12 * 9)),
    ],
    ids=["half-layer", "half-cast", "encoder", "attention", "norm-of-the-image", "linear", "no-grad", "kernels"],
)
def test_what_a_graph_computes_is_proven_layer_by_layer(module):
    model = quantize(module, THROUGHOUT, images())
    crops = [random_images(24, 32, seed=3)]
    found = compare_layers(model, lower(model), OnnxRuntime.open_bytes, crops)
    assert {layer.name for layer in found} == {*model.layers, "output"}
    assert all(layer.is_clean for layer in found), [layer for layer in found if not layer.is_clean]


def test_a_picture_without_numbers_is_no_random_one(monkeypatch):
    dark = Around(lambda _, x: x + torch.sqrt(x.mean((1, 2, 3), keepdim=True) - 100.0))
    dark.first.weight.data.fill_(1.0)
    model = quantize(dark, THROUGHOUT, images(2), input_range=255)
    monkeypatch.setattr(tracing, "_image", lambda size_px: torch.zeros(1, 3, *size_px))
    with pytest.raises(InputError, match="holds NaN or infinity; check its weights"):
        lower(model)


def test_a_picture_of_one_value_is_no_random_one():
    model = quantize(Around(lambda _, x: torch.clamp(x, 1e6, 2e6)), THROUGHOUT, images())
    for layer in model.layers.values():
        layer.codes.zero_()
        layer.bias.fill_(1.0)
    assert lower(model).graph.output


def test_layers_in_half_precision_stay_float():
    for module in (
        Around(half_precision, nn.Conv2d(12, 12, 3, padding=1).half()),
        Around(autocast, nn.Conv2d(12, 12, 1)),
    ):
        assert foreign_network(module).config.float_only == ("net.part",)


def test_fused_encoders_run_their_quantized_layers():
    module = Around(tokens, nn.TransformerEncoderLayer(12, 2, 16, batch_first=True))
    model = quantize(module, THROUGHOUT, images())
    ran = []
    for name in ("net.part.linear1", "net.part.linear2"):
        model.layers[name].tap = lambda x, name=name: ran.append(name) or x
    model(images()[0])
    assert ran == ["net.part.linear1", "net.part.linear2"]


def test_what_is_cast_is_rounded_and_goes_on_in_float64():
    model = quantize(
        Around(lambda _, x: x.to(torch.bfloat16).float()),
        QuantizationPolicy(LayerBits(8, 8), tail=LayerBits(8, 8), overrides={"net.body": None}),
        images(),
    )
    assert "net.body" not in model.layers
    x = images()[0]
    found, expected = model.double()(x.double()), model(x)
    assert found.dtype == torch.float64
    assert float((found - expected).abs().mean()) < 0.5


def test_code_that_cannot_be_computed_in_float64_is_refused_in_words():
    module = Around(half_attention, nn.Conv2d(12, 12, 1).half())
    model = quantize(module, 8, [torch.from_numpy(random_images(48, 64, seed=1))])
    with pytest.raises(InputError, match=r"does not run in float64, .*dtype.*; let its code keep the type"):
        model.double()(torch.zeros(1, 3, 48, 64, dtype=torch.float64))
    x = torch.from_numpy(random_images(48, 64, seed=1))
    assert np.isfinite(model(x).numpy()).all()


def test_operators_taken_apart_by_the_examples_sizes_are_refused(monkeypatch):
    monkeypatch.setattr("odm_deploy.lowering.tracing.SizesFromImages", nullcontext)
    module = Around(lambda _, x: x + F.interpolate(F.adaptive_avg_pool2d(x, 8), x.shape[2:]))
    with pytest.raises(InputError, match=r"^cannot export .*:Around: its code fixes sizes .* something else; compute"):
        lower(quantize(module, THROUGHOUT, images()))


def test_kernels_made_of_the_image_are_exported_for_single_images():
    graph = lower(quantize(Around(own_kernels, nn.Linear(12, 12 * 9)), THROUGHOUT, images()))
    assert [dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim[:2]] == [1, 3]


def test_gradients_that_code_switches_on_do_not_keep_it_from_any_profile():
    def switched_on(net, x):
        with torch.enable_grad():
            return x + net.part(x)

    for profile in ("paper", "integer"):
        model = quantize(Around(switched_on, nn.Conv2d(12, 12, 1)), QuantizationPolicy.parse(profile, "8"), images())
        assert "net.part" in model.layers
