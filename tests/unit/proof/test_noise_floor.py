"""The noise floor: draws of the reference that round as legitimately as it does."""

from __future__ import annotations

import numpy as np
import pytest

from odm_deploy.imaging.pixels import to_pixels
from odm_deploy.proof.layer_parity import FEW_TIES, MAX_TIE_RATE, OUTPUT, TIE_STEPS, LayerParity
from odm_deploy.proof.parity import FLOOR_DRAWS, Rounding, floor_draws, rounding_of
from odm_deploy.proof.parity_report import Distance
from odm_deploy.proof.reference import TorchReference
from tests.factories import exact_model, model_on_ties, random_images, tiny_model


def test_noise_is_what_flips_as_many_codes():
    layers = [LayerParity("a", codes=10**6, flips=90, max_step=1), LayerParity("b", codes=3 * 10**6, flips=30)]
    rounding = rounding_of([*layers, LayerParity(OUTPUT, codes=10**6, flips=10**5)])
    assert rounding.noise_steps == pytest.approx(6e-5)
    assert rounding.tie_share == 1.0
    values = np.random.default_rng(0).uniform(0, 15, 10**7)
    moved = values + np.random.default_rng(1).uniform(-1e-4, 1e-4, values.size)
    flips = int(np.sum(np.rint(values) != np.rint(moved)))
    assert rounding_of([LayerParity("c", 10**7, flips)]).noise_steps == pytest.approx(1e-4, rel=0.1)


def test_noise_is_what_a_runtime_is_known_for_and_no_more_than_clean_layers_flip():
    quiet = [LayerParity("a", codes=10**6)]
    assert rounding_of(quiet) == Rounding(0.0, 1.0)
    assert rounding_of(quiet, TIE_STEPS) == Rounding(TIE_STEPS, 1.0)
    assert rounding_of([LayerParity("a", codes=100, flips=100)], TIE_STEPS).noise_steps == 2 * MAX_TIE_RATE
    # Nothing is known about how a runtime rounds this model where no layer was compared.
    assert rounding_of([], TIE_STEPS) == Rounding()


def test_as_many_ties_move_as_flip_what_flipped_on_them():
    layers = [LayerParity("a", 10**6, 90, 1, tie_flips=90, ties=1000), LayerParity("b", 10**6, 7, 1, tie_flips=7)]
    assert rounding_of(layers).tie_share == pytest.approx(2 * (97 + FEW_TIES) / 1000)
    assert rounding_of([LayerParity("a", 10**6, 90, 1, tie_flips=90, ties=100)]).tie_share == 1.0


def test_jittered_draws_are_legitimate_reproducible_and_different():
    model = tiny_model(8)
    reference = TorchReference(model)
    draws, again = (floor_draws(model, reference, Rounding()) for _ in range(2))
    assert len(draws) == FLOOR_DRAWS
    # One unit in the last place turns about one code in a million: it takes some codes to see any.
    image = random_images(200, 240)
    plain, first, repeated, second = (upscale(image) for upscale in (reference.upscale, draws[0], again[0], draws[1]))
    assert np.array_equal(first, repeated)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, plain)
    assert np.abs(first - plain).max() < 2.0
    assert all(layer.tap is None for layer in model.layers.values())


def test_nothing_is_drawn_where_nothing_rounds():
    for model in (exact_model(), model_on_ties()):
        dividing_is_exact = all(layer.grid.is_power_of_two for layer in model.layers.values())
        assert (floor_draws(model, TorchReference(model), Rounding()) == []) is dividing_is_exact


def test_noise_in_steps_moves_values_that_far():
    model = tiny_model(4)
    reference = TorchReference(model)
    image = random_images(64, 72)

    def apart_at(noise_steps):
        distances = Distance()
        for seed in range(4):
            drawn = reference.upscale_jittered(image, seed=seed, noise_steps=noise_steps)
            distances.add(to_pixels(drawn), to_pixels(reference.upscale(image)))
        return distances.differing

    # Below the last place of a value it changes nothing; a thousandth of a step flips a thousandth of the codes.
    assert apart_at(1e-12) == apart_at(0.0) < 0.1 * apart_at(1e-3)


def test_of_values_on_ties_as_many_move_as_asked_for():
    """On short scales nearly all that a tiny noise can flip lies on ties."""
    reference = TorchReference(model_on_ties())
    image = random_images(64, 72)
    expected = to_pixels(reference.upscale(image))

    def apart_at(share):
        found = Distance()
        found.add(to_pixels(reference.upscale_jittered(image, seed=0, tie_share=share)), expected)
        return found.differing

    none, some, every = (apart_at(share) for share in (0.0, 0.1, 1.0))
    assert none < 0.1 * some
    assert some < 0.5 * every
