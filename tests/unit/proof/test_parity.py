"""End to end: reference, noise floor and runtime on the same images."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from odm_deploy.imaging.pairs import Sample
from odm_deploy.proof.parity import FLOOR_DRAWS, compare
from odm_deploy.proof.parity_report import Gates
from odm_deploy.proof.reference import TorchReference
from tests.factories import OPENERS, exact_model, lowered, random_images, tiny_model


def samples(*sizes, truth=False):
    for index, (height, width) in enumerate(sizes):
        low = random_images(height, width, seed=index)[0].transpose(1, 2, 0).astype(np.uint8)
        yield Sample(str(index), low, low.repeat(2, 0).repeat(2, 1) if truth else None)


def compared(model, opener, *, truth=False):
    with OPENERS[opener](lowered(model).SerializeToString()) as runtime:
        return compare(model, runtime, samples((16, 20), (13, 24), truth=truth))


@pytest.mark.parametrize("opener", OPENERS)
def test_exact_models_are_identical_on_every_runtime(opener):
    report = compared(exact_model(), opener)
    assert (report.images, report.distance.differing, report.floor.differing) == (2, 0, 0)
    assert report.failures(Gates(max_lsb=0, min_identical=1.0)) == []


def test_the_reference_is_as_far_from_its_draws_as_from_itself_in_float64():
    model = tiny_model(8)
    itself = SimpleNamespace(
        upscale=TorchReference(model).upscale, describe=dict, rounding_note="none", rounding_steps=0.0
    )
    report = compare(model, itself, samples((40, 48), (16, 20)))
    assert [draw.values for draw in report.draws] == [report.distance.values] * FLOOR_DRAWS
    assert (report.distance.differing, report.runtime) == (0, {"rounding_note": "none"})
    assert report.furthest_floor_db == min(draw.psnr_db for draw in (report.floor, *report.draws))


def test_honest_lowering_agrees_and_quality_is_measured_on_both():
    report = compared(tiny_model(8), "onnxruntime", truth=True)
    assert report.failures(Gates()) == []
    assert report.distance.values == 2 * 2 * 3 * (16 * 20 + 13 * 24)
    assert len(report.reference_quality.psnr_y_db) == len(report.runtime_quality.ssim_y) == 2
    assert abs(report.psnr_drop_db) < 0.01
    assert 0 < report.to_dict(Gates())["reference"]["psnr_y_db"] < 60
