"""Every network exports with dynamic batch, height and width, float and quantized, and computes what torch computes."""

import warnings

import numpy as np
import onnxruntime
import pytest
import torch

from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.grid import Grid
from odm_deploy.lowering.lower import lower
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import freeze
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.weights import quantize_weight

NETWORKS = {
    "rdn": {"scale": 3, "blocks": 2, "convolutions": 2, "growth": 8, "features": 6},
    "srresnet": {"scale": 4, "features": 8, "blocks": 2},
    "swinir": {"scale": 2, "channels": 12, "groups": 1, "depth": 2, "heads": 3, "hidden": 16},
}
EXAMPLE = (2, 3, 40, 56)
SIZES = [(1, 3, 16, 24), (3, 3, 17, 9), (1, 3, 5, 30), (1, 3, 1, 1)]


def small(name):
    """A network with random weights whose outputs are image-like."""
    torch.manual_seed(0)
    network = build_network(name, NETWORKS[name]).eval()
    for parameter in network.parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network


def frozen(network, bits):
    """Body layers on min-max grids of one random image."""
    ranges = {}

    def watch(name):
        return lambda _module, inputs, _output: ranges.update({name: (float(inputs[0].min()), float(inputs[0].max()))})

    modules = dict(network.named_modules())
    selected = QuantizationPolicy(body=LayerBits(bits, bits)).select(network)
    handles = [modules[name].register_forward_hook(watch(name)) for name in selected]
    with torch.no_grad():
        network(torch.rand(1, 3, 24, 40) * 255)
    for handle in handles:
        handle.remove()
    layers = {}
    for name in selected:
        low, high = min(ranges[name][0], 0.0), ranges[name][1]
        scale = (high - low) / (2**bits - 1)
        weight = quantize_weight(modules[name].weight, bits)
        layers[name] = FrozenLayer(weight, Grid(scale, round(-low / scale), bits), modules[name].bias)
    return freeze(network, layers)


def run_onnx(content, images):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return [session.run(None, {session.get_inputs()[0].name: image.numpy()})[0] for image in images]


@pytest.mark.parametrize("name", NETWORKS)
def test_float_export_serves_every_size(name):
    network = small(name)
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            network,
            (torch.rand(EXAMPLE) * 255,),
            dynamo=True,
            opset_version=20,
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    images = [torch.rand(size) * 255 for size in SIZES]
    for image, found in zip(images, run_onnx(program.model_proto.SerializeToString(), images), strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(found, network(image).numpy(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_quantized_body_survives_model_pt_and_lowers_exactly(name, tmp_path):
    save_model(frozen(small(name), 4), tmp_path / "model.pt")
    model = load_model(tmp_path / "model.pt")
    images = [torch.rand(size) * 255 for size in SIZES]
    for image, found in zip(images, run_onnx(lower(model).SerializeToString(), images), strict=True):
        difference = np.abs(found - model(image).numpy())
        # A value on a rounding tie may fall to either side; anything systematic moves most pixels.
        assert np.quantile(difference, 0.9) < 1e-3
