import math

import pytest
import torch

from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.errors import InputError, UsageError
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization import post_training, range_fitting
from odm_deploy.quantization.observers import observe
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.quantization.ranges import RangeMethod

POLICY = QuantizationPolicy(LayerBits(8, 8))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network("edsr", {"scale": 2, "features": 8, "blocks": 2}).eval()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, size, 12, generator=generator) * 255 for size in (9, 12, 15)]


def mean_error(model, network, images) -> float:
    with torch.no_grad():
        return max(float((model(image) - network(image)).abs().mean()) for image in images)


def test_more_bits_come_closer_to_the_float_network(network, images):
    errors = []
    for bits in (2, 4, 8):
        model, _ = calibrate(network, images, QuantizationPolicy(LayerBits(bits, bits)))
        errors.append(mean_error(model, network, images))
    assert errors[0] > errors[1] > errors[2] > 0
    assert errors[2] < 0.5


def test_the_float_network_is_left_as_it_was(network, images):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    calibrate(network, images, POLICY)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_observers_see_each_layers_input(network, images):
    layer = "body.0.body.2"
    observers = observe(network, images, [layer])
    seen = []
    handle = network.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for image in images:
            network(image)
    handle.remove()
    assert observers[layer].images == 3
    assert observers[layer].maximum == max(float(values.max()) for values in seen)
    assert observers[layer].histogram.occupied()[1].sum() == sum(values.numel() for values in seen)


@pytest.mark.parametrize("changed", [{}, {"body.0.*": None}, {"body.1.body.0": LayerBits(4, 4)}])
def test_what_an_earlier_calibration_chose_gives_the_same_model(network, images, changed, monkeypatch):
    # Both are decided for all layers that are fitted at once.
    monkeypatch.setattr(range_fitting, "LETTERING_FOR_PHOTOGRAPHS", math.inf)
    monkeypatch.setattr(range_fitting, "TINT", math.inf)
    policy = QuantizationPolicy(LayerBits(8, 8), overrides=changed)
    expected, lines = calibrate(network, images, policy)
    known = {}
    calibrate(network, images, POLICY, CalibrationSettings(in_sequence=False), known=known)
    looked_at = []

    def watched(network, images, names, *more):
        looked_at.extend(names)
        return observe(network, images, names, *more)

    monkeypatch.setattr(post_training, "observe", watched)
    found, found_lines = calibrate(network, images, policy, known=known)
    assert found_lines == lines
    wanted, got = expected.network.state_dict(), found.network.state_dict()
    assert wanted.keys() == got.keys()
    assert all(torch.equal(got[key], value) for key, value in wanted.items())
    assert looked_at == [name for name, bits in changed.items() if bits is not None]


def test_layers_that_share_grids_are_chosen_anew(network, images):
    known = {}
    policy = QuantizationPolicy.integer(LayerBits(8, 8))
    calibrate(network, images, policy, known=known)
    assert not known


def test_hooks_are_removed_when_an_image_fails(network):
    with pytest.raises(InputError, match=r"the input of body\.0\.body\.0 is not finite"):
        calibrate(network, [torch.full((1, 3, 8, 8), float("nan"))], POLICY)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_images_are_consumed_one_by_one(network, images):
    alive = 0

    def stream():
        nonlocal alive
        for image in images:
            alive += 1
            yield image.clone()

    model, _ = calibrate(network, stream(), POLICY)
    assert alive == 3
    assert len(model.layers) == 4


def test_the_summary_tells_what_is_in_the_model(network, images):
    policy = QuantizationPolicy(LayerBits(4, 6), tail=LayerBits(8, 6))
    model, summaries = calibrate(network, images, policy, metadata={"method": "a test"})
    assert [summary.name for summary in summaries] == list(model.layers)
    for summary in summaries:
        layer = model.layers[summary.name]
        assert (summary.bits, summary.weight_bits) == (layer.grid.bits, layer.weight_bits)
        assert (summary.lower, summary.upper, summary.zero_point) == (
            layer.grid.lower,
            layer.grid.upper,
            layer.grid.zero_point,
        )
        assert 0 <= summary.clipped_share < 0.2
        assert 0 < summary.mismatch < 0.2
    assert {summary.weight_bits for summary in summaries if summary.name.startswith("tail")} == {8}
    assert model.metadata == {"method": "a test", "exact_sums": True}


@pytest.mark.parametrize("method", RangeMethod)
@pytest.mark.parametrize("free", [False, True])
def test_every_method_survives_model_pt_to_the_bit(tmp_path, network, images, method, free):
    policy = QuantizationPolicy(LayerBits(4, 4), free=free, per_channel=False)
    model, _ = calibrate(network, images, policy, CalibrationSettings(method, search_weights=False))
    save_model(model, tmp_path / "model.pt")
    assert torch.equal(load_model(tmp_path / "model.pt")(images[0]), model(images[0]))
    assert all(layer.grid.is_free == free for layer in model.layers.values())
    assert all(layer.scale.shape == (1,) for layer in model.layers.values())


def test_percentiles_reach_the_grids(network, images):
    uppers = []
    for percentile in (90.0, 99.9):
        settings = CalibrationSettings(RangeMethod.PERCENTILE, percentile)
        model, _ = calibrate(network, images, POLICY, settings)
        uppers.append(model.layers["body.1.body.2"].grid.upper)
    assert uppers[0] < 0.8 * uppers[1]


def test_no_images_are_refused(network):
    with pytest.raises(InputError, match="nothing to calibrate on"):
        calibrate(network, [], POLICY)


def test_a_policy_that_does_not_fit_is_refused_before_any_image(network):
    def stream():
        pytest.fail("an image was read")
        yield

    policy = QuantizationPolicy(LayerBits(4, 4), overrides={"neck": None})
    with pytest.raises(UsageError, match="--layer neck matches nothing"):
        calibrate(network, stream(), policy)


def test_progress_counts_images_that_the_network_has_run_over(network, images):
    """Not those that have been read, or nothing is told while a large network works for minutes."""
    runs, told = [], []

    def track(items, total, stage=""):
        for item in items:
            if stage == "calibrating":
                told.append((total, len(runs)))
            yield item

    handle = network.register_forward_pre_hook(lambda *_: runs.append(1))
    try:  # the hook is copied with the network
        calibrate(network, images, POLICY, track=track)
    finally:
        handle.remove()
    assert told == [(3, 0), (3, 1), (3, 2)]
