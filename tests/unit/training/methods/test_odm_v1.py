"""ODM v1's offsets and its asymmetric weights."""

import numpy as np
import pytest
import torch

from training.methods.odm_v1 import quantized_offset


def test_odm_v1_gives_offsets_to_the_layers_whose_channels_differ_most(attach):
    _, model = attach("odm_v1", 4, offset_share=0.5)
    quantizers = [layer.activation for layer in model.layers.values()]
    for flag, spread in (("has_shift", "mean_spread"), ("has_gain", "deviation_spread")):
        ranked = sorted(quantizers, key=lambda q: getattr(q, spread), reverse=True)
        assert [getattr(q, flag).is_set for q in ranked] == [True, True, False, False]


def test_odm_v1_offsets_are_four_bit_symmetric():
    offset = torch.tensor([7.0, -3.4, 0.4, -0.6], requires_grad=True)
    levels = quantized_offset(offset)
    assert levels.tolist() == [7.0, -3.0, 0.0, -1.0]
    levels.sum().backward()
    assert offset.grad.tolist() == [1.0, 1.0, 1.0, 1.0]


def test_odm_v1_transforms_by_shift_then_gain(attach):
    _, model = attach("odm_v1", 4, offset_share=1.0)
    quantizer = next(iter(model.layers.values())).activation
    with torch.no_grad():
        quantizer.shift.fill_(2.0)
        quantizer.gain.fill_(3.0)
    assert quantizer.transform(torch.ones(1, 6, 2, 2)).unique().tolist() == [9.0]


def test_percentile_weights_are_zero_snapped_and_asymmetric(attach):
    _, model = attach("odm_v1", 3, offset_share=0.0)
    layer = next(iter(model.layers.values()))
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1.0, 3.0, layer.weight.numel()).reshape(layer.weight.shape))
    codes = layer.weight_quantizer.codes(layer.weight)
    low_bound, high_bound = np.percentile(layer.weight.detach().numpy(), [1, 99])
    assert codes.scale.item() == pytest.approx((high_bound - low_bound) / 7, rel=1e-5)
    assert codes.first == round(low_bound / codes.scale.item())
    assert 0 in codes.codes
