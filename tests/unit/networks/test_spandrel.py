"""Networks that spandrel recognises: from public weights to a model.pt and an int8 graph."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch import nn

from odm_deploy import quantize
from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.errors import InputError
from odm_deploy.lowering.lower import lower
from odm_deploy.networks.folding import fold_branches
from odm_deploy.networks.loading import load_network
from odm_deploy.networks.spandrel_models import network_from_spandrel
from odm_deploy.networks.trusted_builders import build_module
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy, quantizable_layers
from tests.factories import OPENERS, random_images
from tests.spandrel_here import require_spandrel

# package, class, hyper-parameters of a variant, scale, layers that can be quantized
VARIANTS = {
    "Compact": ("Compact", "Compact", {"num_feat": 8, "num_conv": 2, "upscale": 2}, 2, 4),
    "ESRGAN": ("ESRGAN", "ESRGAN", {"num_filters": 8, "num_blocks": 1, "scale": 4}, 4, 21),
    "ESRGAN, unshuffled": (
        "ESRGAN",
        "ESRGAN",
        {"num_filters": 8, "num_blocks": 1, "scale": 4, "in_nc": 12, "shuffle_factor": 2},
        2,
        21,
    ),
    "SPAN": ("SPAN", "SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 2}, 2, 22),
}
THROUGHOUT = QuantizationPolicy(*[LayerBits(8, 8)] * 4)


@pytest.fixture(params=VARIANTS)
def variant(request):
    """A float network of spandrel, its scale and how many layers it has."""
    require_spandrel()
    package, name, parameters, scale, layers = VARIANTS[request.param]
    torch.manual_seed(0)
    kind = getattr(importlib.import_module(f"spandrel.architectures.{package}"), name)
    return kind(**parameters).eval(), scale, layers


def images():
    return [torch.from_numpy(random_images(48, 64, seed=seed)) for seed in range(2)]


def test_recognised_by_its_weights_it_computes_the_same(variant):
    module, scale, layers = variant
    network = network_from_spandrel(module.state_dict(), scale)
    assert network.scale == scale
    assert len(quantizable_layers(network)) == layers
    x = images()[0]
    with torch.no_grad():
        torch.testing.assert_close(network(x), module(x / 255) * 255, rtol=1e-4, atol=1e-2)


def test_quantized_it_comes_back_without_trust_and_runs(variant, tmp_path):
    module, scale, layers = variant
    model = quantize(network_from_spandrel(module.state_dict(), scale), THROUGHOUT, images())
    assert len(model.layers) == layers
    save_model(model, tmp_path / "model.pt")
    again = load_model(tmp_path / "model.pt")
    x = random_images(34, 46, seed=5)
    expected = model(torch.from_numpy(x)).numpy()
    assert np.array_equal(again(torch.from_numpy(x)).numpy(), expected)
    with OPENERS["onnxruntime"](lower(again).SerializeToString()) as runtime:
        assert np.quantile(np.abs(runtime.upscale(x) - expected), 0.9) < 0.01 * expected.std() + 0.05


@pytest.mark.parametrize("folded", [True, False])
def test_weights_of_what_authors_deploy_load_by_the_name_of_the_builder(folded, tmp_path):
    require_spandrel()
    package, name, parameters, scale, layers = VARIANTS["SPAN"]
    builder = f"spandrel.architectures.{package}:{name}"
    torch.manual_seed(0)
    module = build_module(builder, parameters).eval()
    x = images()[0]
    with torch.no_grad():
        expected = module(x / 255) * 255
    if folded:
        fold_branches(module)
    torch.save(module.state_dict(), tmp_path / "span.pth")
    network = load_network(tmp_path / "span.pth", network=builder, settings=parameters)
    assert network.scale == scale
    assert len(quantizable_layers(network)) == layers
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-2)


def test_what_spandrel_does_not_know_is_refused():
    require_spandrel()
    with pytest.raises(InputError, match="spandrel does not know this network"):
        network_from_spandrel(nn.Conv2d(3, 3, 1).state_dict(), 2)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_that_are_not_rgb_are_refused_with_their_channels(channels):
    require_spandrel()
    kind = importlib.import_module("spandrel.architectures.Compact").Compact
    module = kind(num_in_ch=channels, num_out_ch=channels, num_feat=4, num_conv=1, upscale=2)
    with pytest.raises(InputError, match=rf"{channels} input and {channels} output channels.*; take weights for RGB"):
        network_from_spandrel(module.state_dict())


def test_the_scale_is_checked():
    require_spandrel()
    module = importlib.import_module("spandrel.architectures.Compact").Compact(num_feat=4, num_conv=1, upscale=2)
    with pytest.raises(InputError, match="upscales by 2"):
        network_from_spandrel(module.state_dict(), 4)


@pytest.mark.parametrize("name", ["CompactArch", "StateDict", "torch"])
def test_nothing_but_its_networks_is_built_without_trust(name):
    require_spandrel()
    with pytest.raises(InputError):
        build_module(f"spandrel.architectures.Compact:{name}", {})
