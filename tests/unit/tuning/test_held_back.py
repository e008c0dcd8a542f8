"""What quantization costs: PSNR between outputs and against the truth, on the middle of images."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from odm_deploy.errors import InputError
from odm_deploy.proof.metrics import psnr_y
from odm_deploy.tuning.held_back import BEST_DB, HeldBack, Sample, WorstImage
from tests.factories import random_images


def enlarge(low):
    """Nearest neighbours, x2."""
    return F.interpolate(low, scale_factor=2)


def sample(height=40, width=48, seed=0, *, truth=True):
    low = torch.from_numpy(random_images(height, width, seed=seed))
    high = enlarge(low)[0].numpy().transpose(1, 2, 0).astype(np.uint8)
    return Sample(low, high if truth else None)


def test_psnr_is_over_all_images_on_clamped_values():
    samples = [sample(seed=0, truth=False), sample(20, 20, seed=1, truth=False)]
    held = HeldBack(enlarge, samples)
    cost = held.measure(lambda low: enlarge(low) + 3.0)
    pairs = [(enlarge(each.low).numpy(), np.clip(enlarge(each.low).numpy() + 3.0, 0, 255)) for each in samples]
    errors = np.concatenate([(a.astype(np.float64) - b).ravel() for a, b in pairs])
    assert cost.psnr_db == pytest.approx(10 * np.log10(255**2 / np.mean(errors**2)), abs=1e-4)
    assert cost.largest == pytest.approx(3.0)
    assert cost.images == 2
    assert cost.drop_db is None
    assert held.measure(enlarge).psnr_db == math.inf


def test_the_worst_image_is_known_by_its_name():
    samples = [dataclasses.replace(sample(seed=seed), name=f"{seed}.png") for seed in range(3)]
    worst = samples[1].low

    def uneven(low):
        return enlarge(low) + (8.0 if torch.equal(low, worst) else 2.0)

    cost = HeldBack(enlarge, samples).measure(uneven)
    assert cost.worst is not None
    assert cost.worst.name == "1.png"
    assert cost.worst.psnr_db == HeldBack(enlarge, samples[1:2]).measure(uneven).psnr_db < cost.psnr_db
    assert HeldBack(enlarge, samples).measure(enlarge).worst is None
    # Of one image there is no worst, but one that calibration saw may be worse.
    alone = HeldBack(enlarge, samples[:1]).measure(uneven)
    assert alone.worst is None
    assert alone.beside(cost).worst == WorstImage("1.png", cost.worst.psnr_db, seen=True)
    assert HeldBack(enlarge, samples[1:2]).measure(uneven).beside(cost).worst is None


def test_the_truth_is_cut_where_the_image_is():
    # The network gives the truth exactly, so any shift between the two would show.
    held = HeldBack(enlarge, [sample(51, 62)], part_px=16)
    assert held.lows[0].shape == (1, 3, 16, 16)
    cost = held.measure(enlarge)
    assert cost.float_psnr_y_db == BEST_DB
    high = held.samples[0].truth
    assert high is not None

    def darker(low):
        return enlarge(low) - 2.0

    found = np.clip(high.astype(int) - 2, 0, 255).astype(np.uint8)
    assert held.measure(darker).quantized_psnr_y_db == pytest.approx(psnr_y(found, high, 2))


def test_what_is_lost_where_errors_do_not_cancel():
    """A network with an error of its own, and a quantized one that undoes it, doubles it, or errs elsewhere."""
    low, truth = sample(seed=3).low * 0.5 + 60.0, None
    truth = enlarge(low).round()[0].permute(1, 2, 0).numpy().astype(np.uint8)
    signs = torch.randint(0, 2, (2, 3, 80, 96), generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0

    def erring(error):
        return lambda low: enlarge(low).round() + error

    held = HeldBack(erring(4.0 * signs[0]), [Sample(low, truth)])
    undone, doubled, apart = (
        held.measure(erring(error)) for error in (2.0 * signs[0], 8.0 * signs[0], 4.0 * signs[0] + 4.0 * signs[1])
    )
    three_db = 10 * math.log10(2)
    assert undone.drop_db == pytest.approx(-2 * three_db, abs=0.1)
    assert undone.expected_drop_db == pytest.approx(10 * math.log10(1.25), abs=0.1)
    assert doubled.drop_db == doubled.expected_drop_db == pytest.approx(2 * three_db, abs=0.1)
    assert doubled.uncancelled_drop_db == pytest.approx(three_db, abs=0.1)
    assert apart.drop_db == pytest.approx(three_db, abs=0.15)
    assert apart.uncancelled_drop_db == pytest.approx(three_db, abs=0.1)
    assert held.measure(erring(4.0 * signs[0])).uncancelled_drop_db == 0.0
    # Of several images the mean counts, and two standard errors.
    flat = torch.full((1, 3, 40, 48), 100.0)
    white = np.full((80, 96, 3), 100, np.uint8)
    pair = HeldBack(erring(4.0), [Sample(flat, white), Sample(flat + 4.0, white)])
    each = [10 * math.log10(1 + (2 / error) ** 2) for error in (4, 8)]
    margin = 2 * abs(each[0] - each[1]) / 2**0.5 / 2**0.5
    assert pair.measure(erring(6.0)).uncancelled_drop_db == pytest.approx(sum(each) / 2 + margin, rel=1e-3)
    perfect = HeldBack(enlarge, [sample()])
    # As much as where rounding to 8 bits were all that is missing: a variance of 1 / 12.
    lost = perfect.measure(lambda low: enlarge(low) + 1.0).uncancelled_drop_db
    assert lost == pytest.approx(10 * math.log10(1 + 12 * (219.859 / 256) ** 2), abs=0.01)


def test_black_frames_say_nothing_of_what_is_lost():
    """A network with an error of its own, but for black, which it gives as it is."""

    def network(low):
        return enlarge(low) + 4.0 * (low.max() > 0)

    flat = Sample(torch.full((1, 3, 40, 48), 100.0), np.full((80, 96, 3), 100, np.uint8), "flat.png")
    black = Sample(torch.zeros(1, 3, 40, 48), np.zeros((80, 96, 3), np.uint8), "black.png")

    def quantized(low):
        return network(low) + 0.1

    alone = HeldBack(network, [flat]).measure(quantized)
    beside = HeldBack(network, [black, flat]).measure(quantized)
    assert alone.drop_db == 0.0
    for figure in ("float_psnr_y_db", "quantized_psnr_y_db", "uncancelled_drop_db", "expected_drop_db"):
        assert getattr(beside, figure) == getattr(alone, figure)
    # How far outputs are apart is measured on all.
    assert beside.images == 2
    only = HeldBack(network, [black]).measure(quantized)
    assert only.drop_db == 0.0
    assert only.uncancelled_drop_db == pytest.approx(10 * math.log10(1 + 0.12 * (219.859 / 256) ** 2), abs=0.01)


def test_nothing_to_judge_by_and_outputs_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="no image was held back"):
        HeldBack(enlarge, [])
    held = HeldBack(enlarge, [sample()])
    with pytest.raises(InputError, match="NaN or infinity"):
        held.measure(lambda low: enlarge(low) * math.nan)
