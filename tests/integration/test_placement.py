"""Every network quantized throughout is an int8 engine throughout: TensorRT-RTX's own layer table says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from odm_deploy import quantize
from odm_deploy.building.build import build_engine
from odm_deploy.building.coverage import coverage
from odm_deploy.building.options import BuildOptions
from odm_deploy.graphs.input_shapes import parse_shapes
from odm_deploy.lowering.lower import LoweringOptions, lower
from odm_deploy.machine.builders import can_build, find_builder
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from tests.factories import quantized, random_images

RTX = find_builder("tensorrt_rtx")

pytestmark = pytest.mark.skipif(not can_build(RTX), reason=RTX.problem or "TensorRT-RTX cannot build here")

# Published widths, few blocks: which kernel a layer gets depends on its channels, not on how often it comes.
NETWORKS = {
    "edsr": {"blocks": 1},
    "srresnet": {"blocks": 1},
    "rdn": {"blocks": 2, "convolutions": 3},
    "swinir": {"groups": 1, "depth": 2},
}
SHAPES = "1x3x32x32:1x3x96x128:2x3x270x480"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_all_quantized_layers_run_as_int8(name: str, bits: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = build_network(name, {"scale": 4, **NETWORKS[name]}).eval()
    model = quantized(network, lambda *_: (bits, "asymmetric", "per_channel"))
    # SwinIR in half precision: its normalisation and softmax are most of what is left to the rest.
    proto = lower(model, LoweringOptions(precision="fp16" if name == "swinir" else "fp32"))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    shapes = parse_shapes(SHAPES)
    report = build_engine(path, tmp_path / "engine.plan", BuildOptions(builder=RTX.name, shapes=shapes, timeout_s=120))
    found = coverage(path, list(report.layers), shapes)
    assert [(layer.name, layer.engine_layer) for layer in found.fallbacks] == []
    assert {layer.name for layer in found.layers if layer.precision == "int8"} == set(model.layers)


class Attending(nn.Module):
    """Rows of pixels attending to each other, with queries, keys and values sliced from one product."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 12, 3, padding=1)
        self.qkv, self.proj = nn.Linear(32, 96, bias=bias), nn.Linear(32, 32, bias=bias)

    def forward(self, x):
        tokens = self.first(x).permute(0, 2, 3, 1)
        query, key, value = self.qkv(tokens).chunk(3, -1)
        tokens = tokens + self.proj(torch.softmax(query @ key.transpose(-2, -1), -1) @ value)
        return nn.functional.pixel_shuffle(self.last(tokens.permute(0, 3, 1, 2)), 2)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("bits", [4, 8])
def test_products_that_are_sliced_run_as_int8(bits: int, bias: bool, tmp_path: Path) -> None:
    torch.manual_seed(2)
    images = [torch.from_numpy(random_images(48, 64))]
    model = quantize(Attending(bias), QuantizationPolicy(*[LayerBits(bits, bits)] * 4), images)
    path = tmp_path / "model.onnx"
    path.write_bytes(lower(model).SerializeToString())
    shapes = parse_shapes("1x3x64x64")
    report = build_engine(path, tmp_path / "engine.plan", BuildOptions(builder=RTX.name, shapes=shapes, timeout_s=120))
    found = coverage(path, list(report.layers), shapes)
    assert [(layer.name, layer.engine_layer) for layer in found.fallbacks] == []
    assert found.int8_layers == len(model.layers) == 4
