"""Mixed widths keep the goal, with no more layers than need be; what cannot be kept is refused with the figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from odm_deploy.errors import GateError, UsageError
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.cross_layer import SCALED_CHANNELS
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.tuning.goals import Goal, default_goal
from odm_deploy.tuning.held_back import HeldBack, OutputCost, Sample
from odm_deploy.tuning.mixed_widths import keep_goal
from odm_deploy.tuning.sensitivity import layer_sensitivities
from tests.factories import random_images, tiny_network

COARSE = "body.1.body.0"


def samples(network=None):
    lows = [torch.from_numpy(random_images(40, 40, seed=seed)) for seed in range(2)]
    if network is None:
        return [Sample(low) for low in lows]
    with torch.no_grad():
        truths = [network(low)[0].clamp(0, 255).round().numpy().transpose(1, 2, 0).astype(np.uint8) for low in lows]
    return [Sample(low, truth) for low, truth in zip(lows, truths, strict=True)]


def model_of(network, policy):
    # Layers are going to be exchanged, so none makes up for another.
    settings = CalibrationSettings(exact_sums=False, in_sequence=False)
    return calibrate(network, [each.low for each in samples()], policy, settings)[0]


@pytest.fixture(scope="module")
def network():
    return tiny_network()


@pytest.fixture(scope="module")
def one_coarse(network):
    return model_of(network, QuantizationPolicy(LayerBits(8, 8), overrides={COARSE: LayerBits(2, 2)}))


def test_the_one_layer_that_costs_is_left_float(network, one_coarse):
    held = HeldBack(network, samples())
    before = held.measure(one_coarse)
    found = keep_goal(network, one_coarse, held, Goal(min_psnr_db=before.psnr_db + 6))
    assert (found.in_float, found.widened) == ((COARSE,), ())
    assert found.before == before
    assert found.after.psnr_db >= before.psnr_db + 6
    assert found.after == held.measure(found.model)
    assert set(one_coarse.layers) - set(found.model.layers) == {COARSE}
    assert found.quantized_share < found.quantized_share_before
    # The original is as it was.
    assert held.measure(one_coarse) == before


def test_a_goal_on_the_truth_is_kept(network, one_coarse):
    held = HeldBack(network, samples(network))
    before = held.measure(one_coarse)
    assert before.drop_db is not None
    found = keep_goal(network, one_coarse, held, Goal(max_drop_db=before.drop_db / 3))
    assert found.after.drop_db is not None
    assert found.after.drop_db <= before.drop_db / 3


def test_a_goal_that_is_kept_anyway_changes_nothing(network, one_coarse):
    held = HeldBack(network, samples())
    found = keep_goal(network, one_coarse, held, Goal(min_psnr_db=5.0))
    assert found.model is one_coarse
    assert (found.in_float, found.measured, found.quantized_share) == ((), 1, found.quantized_share_before)


def test_low_bit_layers_are_widened_before_any_is_left_float(network):
    narrow = model_of(network, QuantizationPolicy(LayerBits(3, 3)))
    wide = model_of(network, QuantizationPolicy(LayerBits(8, 8)))
    held = HeldBack(network, samples())
    low, high = held.measure(narrow).psnr_db, held.measure(wide).psnr_db
    found = keep_goal(network, narrow, held, Goal(min_psnr_db=low + 3), wide=lambda: wide)
    assert found.in_float == ()
    assert 0 < len(found.widened) < len(narrow.layers)
    assert found.quantized_share == found.quantized_share_before
    for name, layer in found.model.layers.items():
        assert layer.grid.bits == (8 if name in found.widened else 3)
    # More than all at 8 bits can give: some become float on top.
    more = keep_goal(network, narrow, held, Goal(min_psnr_db=high + 1), wide=lambda: wide)
    assert more.in_float
    assert more.after.psnr_db >= high + 1


def test_layers_between_signals_fit_those_of_the_wider_model():
    """Calibration scales their channels; scaled in two ways, layers of both models together gave noise, until all were
    float."""
    torch.manual_seed(1)
    network = build_network("srresnet", {"scale": 2, "features": 8, "blocks": 2}).eval()
    narrow, wide = (model_of(network, QuantizationPolicy.integer(LayerBits(bits, bits))) for bits in (3, 8))
    assert narrow.metadata[SCALED_CHANNELS] == wide.metadata[SCALED_CHANNELS]
    held = HeldBack(network, samples())
    low, high = held.measure(narrow).psnr_db, held.measure(wide).psnr_db
    found = keep_goal(network, narrow, held, Goal(min_psnr_db=0.4 * low + 0.6 * high), wide=lambda: wide)
    assert found.in_float == ()
    assert found.widened
    # No width helps where 8-bit sums cost too much.
    with pytest.raises(GateError, match=r"with all but 1 layer in float; .*--profile deploy has no 8-bit sums"):
        keep_goal(network, narrow, held, Goal(min_psnr_db=150.0), wide=lambda: wide)


def test_a_goal_that_is_striven_for_takes_what_may_become_float_and_is_not_refused(network, one_coarse):
    held = HeldBack(network, samples())
    before = held.measure(one_coarse)
    easy = keep_goal(network, one_coarse, held, Goal(min_psnr_db=before.psnr_db + 6, float_share=0.5))
    assert easy.in_float == (COARSE,)
    some = keep_goal(network, one_coarse, held, Goal(min_psnr_db=150.0, float_share=0.5))
    assert some.in_float
    assert some.quantized_share_before - some.quantized_share <= 0.5
    assert some.after.psnr_db > before.psnr_db
    nothing = keep_goal(network, one_coarse, held, Goal(min_psnr_db=150.0, float_share=1e-6))
    assert (nothing.in_float, nothing.after) == ((), before)


def test_more_becomes_float_only_where_an_easier_goal_is_missed_too(network, one_coarse):
    held = HeldBack(network, samples())
    before = held.measure(one_coarse)

    def found(share, psnr_db, easier_db):
        easier = Goal(min_psnr_db=easier_db, float_share=0.9)
        return keep_goal(network, one_coarse, held, Goal(min_psnr_db=psnr_db, float_share=share, otherwise=easier))

    # Nothing is affordable at first; what is easier is kept already, or takes more.
    assert found(1e-6, 150.0, before.psnr_db - 1).in_float == ()
    assert found(1e-6, 150.0, before.psnr_db + 6).in_float == (COARSE,)
    # What comes up to that within the share is left there, though the goal itself is missed.
    within, beyond = found(0.2, 150.0, before.psnr_db + 3), found(0.2, 150.0, 149.0)
    assert 0 < within.quantized_share_before - within.quantized_share <= 0.2
    assert beyond.quantized_share_before - beyond.quantized_share > 0.2


@pytest.mark.parametrize(
    ("lost_db", "expected_db", "more"),
    [(0.016, 0.024, True), (0.016, 0.019, False), (0.005, 0.047, False), (-0.02, 0.047, False)],
)
def test_a_loss_that_is_only_expected_does_not_ask_for_more(lost_db, expected_db, more):
    goal = default_goal(QuantizationPolicy(LayerBits(8, 8)), None, with_truth=True)
    assert goal.asks_for_more(OutputCost(6, 50.0, 3.0, 30.0, 30.0 - lost_db, expected_db)) == more
    assert not goal.otherwise.asks_for_more(OutputCost(6, 50.0, 3.0, 30.0, 29.0, 1.0))


def test_only_8_bits_without_wishes_of_ones_own_strive_for_anything():
    plain = QuantizationPolicy(LayerBits(8, 8))
    assert default_goal(plain, 0.1, with_truth=True) == Goal(max_drop_db=0.015, float_share=0.1)
    assert default_goal(plain, 0.1, with_truth=False) == Goal(min_psnr_db=50.0, float_share=0.1)
    assert default_goal(plain, 0.0, with_truth=True) is None
    easier = Goal(max_drop_db=0.02, float_share=0.5)
    assert default_goal(plain, None, with_truth=True) == Goal(max_drop_db=0.015, float_share=0.3, otherwise=easier)
    assert default_goal(plain, None, with_truth=False) == Goal(min_psnr_db=50.0, float_share=0.3)
    for other in (
        QuantizationPolicy(LayerBits(4, 8)),
        QuantizationPolicy.exact(LayerBits(8, 8)),
        QuantizationPolicy.integer(LayerBits(8, 8)),
        QuantizationPolicy(LayerBits(8, 8), overrides={COARSE: LayerBits(8, 8)}),
    ):
        assert default_goal(other, 0.1, with_truth=True) is None
        assert default_goal(other, None, with_truth=True) is None


def test_an_exact_model_stays_exact(network):
    narrow = model_of(network, QuantizationPolicy.exact(LayerBits(3, 3)))
    wide = model_of(network, QuantizationPolicy.exact(LayerBits(8, 8)))
    held = HeldBack(network, samples())
    low, high = held.measure(narrow).psnr_db, held.measure(wide).psnr_db
    found = keep_goal(network, narrow, held, Goal(min_psnr_db=low + 3), wide=lambda: wide)
    assert found.model.exact is not None
    assert found.widened
    assert found.in_float == ()
    with pytest.raises(GateError, match="an exact model has no float layers"):
        keep_goal(network, narrow, held, Goal(min_psnr_db=high + 20), wide=lambda: wide)


def test_what_cannot_be_kept_is_refused_with_the_figures(network, one_coarse):
    held = HeldBack(network, samples())
    with pytest.raises(GateError, match=r"kept: .*dB from float's \(required: 150 dB\), with all but 1 layer in float"):
        keep_goal(network, one_coarse, held, Goal(min_psnr_db=150.0))


def test_the_layer_that_stays_quantized_in_the_end_is_the_one_that_costs_least(network):
    """For its work the upsampler costs less, but it has most of the work."""
    widths = {"body.*": None, "tail.1": None, "body.0.body.0": LayerBits(4, 4)}
    model = model_of(network, QuantizationPolicy(LayerBits(8, 8), tail=LayerBits(6, 6), overrides=widths))
    small, large = layer_sensitivities(network, model, [each.low for each in samples()])
    assert (small.name, large.name) == ("body.0.body.0", "tail.0.0")
    assert small.error < large.error < small.error * large.macs_share / small.macs_share
    found = keep_goal(network, model, HeldBack(network, samples()), Goal(min_psnr_db=60.0))
    assert (found.in_float, list(found.model.layers)) == (("tail.0.0",), ["body.0.body.0"])


def test_goals_that_mean_nothing_are_refused(network, one_coarse):
    with pytest.raises(UsageError, match="give --max-drop or --min-psnr"):
        Goal()
    with pytest.raises(UsageError, match="a loss is not negative"):
        Goal(max_drop_db=-0.1)
    with pytest.raises(UsageError, match="--max-drop nan"):
        Goal(max_drop_db=float("nan"))
    with pytest.raises(UsageError, match="--min-psnr nan"):
        Goal(min_psnr_db=float("nan"))
    with pytest.raises(UsageError, match="no truth to lose against"):
        keep_goal(network, one_coarse, HeldBack(network, samples()), Goal(max_drop_db=0.1))
