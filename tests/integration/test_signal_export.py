"""Models whose tensors between layers lie on grids compute the same on runtimes as in torch."""

import dataclasses

import numpy as np
import pytest
import torch

from odm_deploy.lowering.lower import lower
from odm_deploy.networks.registry import build_network
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.runtimes.onnx.onnx_runtime import OnnxRuntime
from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu
from tests.factories import random_images, tiny_network

QUICK = CalibrationSettings(equalize=False, output_ranges=False, adaptive_rounding=False, correct_bias=False)


def model_of(network, profile: str, bits: str, signals: int = 8):
    policy = dataclasses.replace(QuantizationPolicy.parse(profile, bits), signals=signals)
    images = [torch.from_numpy(random_images(24, 20, seed=seed)) for seed in range(3)]
    return calibrate(network, images, policy, QUICK)[0]


@pytest.mark.parametrize("runtime", [OnnxRuntime, OpenVinoCpu])
def test_with_dyadic_scales_every_bit_agrees(runtime):
    model = model_of(tiny_network(), "exact", "8")
    assert model.exact is not None
    image = random_images(17, 23, seed=5)
    with runtime.open_bytes(lower(model).SerializeToString()) as opened:
        (found,) = opened.run({"input": image}).values()
    np.testing.assert_array_equal(found, model(torch.from_numpy(image)).numpy())


@pytest.mark.parametrize("bits", ["8", "4"])
def test_teacher_forced_every_signal_agrees_but_for_ties(bits):
    network = build_network("srresnet", {"scale": 2, "features": 8, "blocks": 2}).eval()
    model = model_of(network, "integer", bits)
    lowered = lower(model)
    compared = compare_layers(model, lowered, OnnxRuntime.open_bytes, [random_images(16, 24, seed=6)])
    by_name = {layer.name: layer for layer in compared}
    assert set(model.grids) <= set(by_name)
    assert all(layer.flip_rate < 1e-3 for layer in by_name.values())
