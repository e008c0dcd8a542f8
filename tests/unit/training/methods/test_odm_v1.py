"""ODM v1's offsets, its asymmetric weights, and the paper to the letter."""

import numpy as np
import pytest
import torch

from odm_deploy.accounting import account
from odm_deploy.checkpoint import load_model, save_model
from training.distributed import World
from training.loop.step import GradientStep
from training.methods.odm_v1 import quantized_offset
from training.methods.registry import build_method


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


def test_odm_v1_offsets_go_to_layers_strictly_beyond_the_quantile(attach):
    """Independent: numpy's quantile over four layers; 0.3 of four are one or two, and only one is beyond it."""
    _, model = attach("odm_v1", 4, offset_share=0.3)
    quantizers = [layer.activation for layer in model.layers.values()]
    spreads = [quantizer.mean_spread for quantizer in quantizers]
    expected = [spread > np.quantile(spreads, 0.7) for spread in spreads]
    assert [quantizer.has_shift.is_set for quantizer in quantizers] == expected


def test_equation_5_moves_ranges_and_offsets_by_the_sign_rule(attach, low):
    letter = {"regularize_ranges": True, "free": True, "free_weights": True, "skt_weight": 0.0, "offset_share": 1.0}
    _, model = attach("odm_v1", 2, **letter)
    high = torch.rand(2, 3, 24, 28, generator=torch.Generator().manual_seed(5)) * 255
    results = []
    for weight in (1e-6, 10.0):
        method = build_method({"name": "odm_v1", **letter, "variance_weight": weight})
        results.append(GradientStep(model, method, World(), False)(low, high, 0))
    kinds = model.quantizer_parameters()
    moved = {kinds[name] for name in kinds if not torch.equal(*(result.combined[name] for result in results))}
    assert moved == {"ranges", "offsets"}
    for name, kind in kinds.items():
        result = results[1]
        if kind == "offsets" and name in result.auxiliary:
            ours, theirs = result.reconstruction[name], result.auxiliary[name]
            expected = torch.where(ours * theirs >= 0, ours + 10.0 * theirs, ours)
            assert torch.allclose(result.combined[name], expected)


def test_free_weights_lie_between_their_percentiles(attach):
    method, model = attach("odm_v1", 2, free=True, free_weights=True)
    layer = next(iter(model.layers.values()))
    low_bound, high_bound = np.percentile(layer.weight.detach().numpy(), [1, 99])
    levels = layer.weight_quantizer(layer.weight).detach().unique().numpy()
    assert levels == pytest.approx(np.linspace(low_bound, high_bound, 4), rel=1e-4)
    assert "no multiples of a scale" in method.why_not_exportable()


def test_offsets_are_stored_as_the_four_bits_they_are(attach, low, tmp_path):
    _, model = attach("odm_v1", 3, offset_share=1.0)
    with torch.no_grad():
        for name, parameter in model.parameters().items():
            if name.endswith((".shift", ".gain")):
                parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(4)) - 0.5)
    frozen = model.freeze({})
    save_model(frozen, tmp_path / "model.pt")
    document = torch.load(tmp_path / "model.pt", weights_only=True)
    assert document["version"] == 5
    for layer in document["layers"].values():
        for offset in layer["offsets"].values():
            assert (offset["packed"].dtype, len(offset["packed"]), offset["channels"]) == (torch.uint8, 3, 6)
    assert torch.equal(load_model(tmp_path / "model.pt")(low), frozen(low))
    plain = model.freeze({})
    for layer in plain.layers.values():
        layer.shift = layer.gain = None
    with_offsets, without = (8 * account(each, output_px=(24, 28)).storage_bytes for each in (frozen, plain))
    # Two vectors a layer of 6 codes of 4 bits and a step.
    assert with_offsets - without == 4 * 2 * (6 * 4 + 32)
