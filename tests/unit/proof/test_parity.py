"""Distances, verdicts and gates, on outputs whose difference is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from odm_deploy.errors import InputError
from odm_deploy.proof.layers import LayerParity
from odm_deploy.proof.parity import (
    FLOOR_FACTOR_DB,
    Distance,
    Gates,
    ParityReport,
    Quality,
    Sample,
    compare,
    to_pixels,
)
from odm_deploy.runtimes.torch_reference import TorchReference
from tests.factories import OPENERS, exact_model, lowered, random_images, tiny_model


def pixels(*values, shape=(2, 2, 3)):
    image = np.full(shape, 100, np.uint8)
    image.flat[: len(values)] = values
    return image


def distance(*values):
    found = Distance()
    found.add(pixels(*values), pixels())
    return found


def test_equal_images_are_identical():
    found = distance()
    assert (found.values, found.differing, found.max_lsb, found.identical, found.psnr_db) == (12, 0, 0, 1.0, math.inf)


def test_distance_sums_over_images():
    found = distance(103, 99)
    found.add(pixels(100, 100, 90), pixels())
    assert (found.values, found.differing, found.max_lsb) == (24, 3, 10)
    assert found.identical == pytest.approx(21 / 24)
    assert found.psnr_db == pytest.approx(10 * math.log10(255**2 / ((9 + 1 + 100) / 24)))
    assert set(found.to_dict()) == {"identical_pixels", "max_lsb", "psnr_between_db"}


def test_differences_do_not_wrap_around():
    found = Distance()
    found.add(np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8))
    assert (found.max_lsb, found.psnr_db) == (255, 0.0)


def test_images_of_other_sizes_are_not_compared():
    with pytest.raises(InputError, match=r"shapes \(2, 2, 3\) and \(2, 4, 3\)"):
        Distance().add(pixels(), pixels(shape=(2, 4, 3)))


def test_pixels_are_rounded_half_to_even_and_clamped():
    image = np.array([0.5, 1.5, 2.5, -7.0, 254.5, 300.0], np.float32).reshape(1, 3, 1, 2)
    assert to_pixels(image).transpose(2, 0, 1).ravel().tolist() == [0, 2, 2, 0, 254, 255]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_output_that_is_not_finite_is_no_image(bad):
    with pytest.raises(InputError, match="NaN or infinity"):
        to_pixels(np.array([bad, 0, 0], np.float32).reshape(1, 3, 1, 1))


def report_with(runtime, floor):
    return ParityReport({"runtime": "test"}, 1, runtime, floor)


def test_verdict_is_the_noise_floor_when_no_gate_is_set():
    # 6 dB apart: twice the difference; 3 dB: a factor of 1.41, more than the 2 dB allowed.
    assert report_with(distance(101), distance(101)).failures(Gates()) == []
    assert report_with(distance(), distance(101)).failures(Gates()) == []
    assert report_with(distance(), distance()).failures(Gates()) == []
    (failure,) = report_with(distance(102), distance(101)).failures(Gates())
    assert "noise floor" in failure
    assert f"{FLOOR_FACTOR_DB:g} dB less" in failure


def test_gates_replace_the_verdict_and_each_fails_alone():
    report = report_with(distance(103), distance())
    assert not report.within_floor
    assert report.failures(Gates(max_lsb=3, min_identical=11 / 12)) == []
    (steps,) = report.failures(Gates(max_lsb=2, min_identical=0.5))
    assert steps.startswith("largest difference 3 steps")
    (identical,) = report.failures(Gates(max_lsb=5, min_identical=0.95))
    assert identical.startswith("identical values 91.6667%")


def test_a_gate_of_zero_is_a_gate():
    assert report_with(distance(101), distance(101)).failures(Gates(max_lsb=0)) != []
    assert report_with(distance(101), distance(101)).failures(Gates(min_identical=0.0)) == []


def quality(*values):
    return Quality(list(values), [0.9] * len(values))


def test_psnr_drop_is_the_references_mean_minus_the_runtimes():
    report = ParityReport({}, 2, reference_quality=quality(30.0, 34.0), runtime_quality=quality(29.0, 34.0))
    assert report.psnr_drop_db == pytest.approx(0.5)
    assert report.failures(Gates(max_psnr_drop_db=0.6)) == []
    assert report.failures(Gates(max_psnr_drop_db=0.4)) == ["PSNR drop 0.500 dB (allowed: 0.4 dB)"]


def test_psnr_gate_without_ground_truth_says_what_is_missing():
    with pytest.raises(InputError, match=r"--max-psnr-drop: there is no ground truth; add --truth"):
        ParityReport({}).failures(Gates(max_psnr_drop_db=0.1))


def test_document_has_the_keys_tools_rely_on():
    report = report_with(distance(101), distance(101))
    report.layers.append(LayerParity("a", codes=4, flips=1, max_step=1))
    document = report.to_dict(Gates())
    assert {"identical_pixels", "max_lsb", "psnr_between_db", "noise_floor", "layers"} <= set(document)
    assert {"reference", "runtime", "passed"} <= set(document)
    assert document["reference"] == document["runtime"] == {"psnr_y_db": None, "ssim_y": None}
    assert document["layers"][0] == {"name": "a", "flip_rate": 0.25, "floor_flip_rate": 0.0, "max_step": 1, "codes": 4}
    assert document["passed"] is True
    assert report.to_dict(Gates(max_lsb=0))["passed"] is False


def samples(*sizes, truth=False):
    for index, (height, width) in enumerate(sizes):
        low = random_images(height, width, seed=index)[0].transpose(1, 2, 0).astype(np.uint8)
        yield Sample(str(index), low, low.repeat(2, 0).repeat(2, 1) if truth else None)


def compared(model, opener, *, truth=False):
    report = ParityReport({"runtime": opener})
    with OPENERS[opener](lowered(model).SerializeToString()) as runtime:
        reference, double = TorchReference(model), TorchReference(model, "float64")
        compare(reference, double, runtime, samples((16, 20), (13, 24), truth=truth), report, shave=2)
    return report


@pytest.mark.parametrize("opener", OPENERS)
def test_exact_models_are_identical_on_every_runtime(opener):
    report = compared(exact_model(), opener)
    assert (report.images, report.distance.differing, report.floor.differing) == (2, 0, 0)
    assert report.failures(Gates(max_lsb=0, min_identical=1.0)) == []


def test_honest_lowering_agrees_and_quality_is_measured_on_both():
    report = compared(tiny_model(8), "onnxruntime", truth=True)
    assert report.failures(Gates()) == []
    assert report.distance.values == 2 * 2 * 3 * (16 * 20 + 13 * 24)
    assert len(report.reference_quality.psnr_y_db) == len(report.runtime_quality.ssim_y) == 2
    assert abs(report.psnr_drop_db) < 0.01
    assert 0 < report.to_dict(Gates())["reference"]["psnr_y_db"] < 60
