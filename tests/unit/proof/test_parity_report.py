"""Verdicts and gates, on outputs whose difference is known."""

from __future__ import annotations

import math

import pytest

from odm_deploy.errors import InputError
from odm_deploy.proof.evaluation import Quality
from odm_deploy.proof.golden import GoldenReport
from odm_deploy.proof.layer_parity import LayerParity
from odm_deploy.proof.parity_report import CLEAN_DB, CLEAN_FACTOR_DB, Distance, Gates, ParityReport
from tests.known_distances import distance


def test_of_an_exact_model_nothing_but_equality_will_do():
    large = Distance(values=10**6)
    exact = ParityReport({}, distance=large, exact=True, golden=GoldenReport(3))
    assert exact.failures(Gates()) == []
    assert exact.to_dict(Gates())["golden"] == {"images": 3, "identical": True, "first_layer": None}
    # One value of a million, one step apart: far within the noise floor of any other model.
    large.differing, large.max_lsb, large.squared = 1, 1, 1.0
    assert ParityReport({}, distance=large, floor=large).failures(Gates()) == []
    assert exact.failures(Gates()) == ["1 of 1000000 values differ, and an exact model allows none"]
    flipped = LayerParity("body.1", codes=10**6, flips=1, max_step=1, exact=True)
    assert not flipped.is_clean
    assert exact.failures(Gates(max_lsb=1)) == []


def test_golden_outputs_that_differ_fail_on_their_own():
    golden = GoldenReport(3, ["the first layer that differs is body.1"], "body.1")
    report = ParityReport({}, exact=True, golden=golden)
    assert report.failures(Gates()) == ["the first layer that differs is body.1"]
    assert report.to_dict(Gates())["golden"] == {"images": 3, "identical": False, "first_layer": "body.1"}
    assert report.to_dict(Gates())["passed"] is False


def report_with(runtime, floor):
    return ParityReport({"runtime": "test"}, 1, runtime, floor)


def test_verdict_is_the_noise_floor_when_no_gate_is_set():
    # 6 dB apart: twice the difference; 3 dB: a factor of 1.41, more than the 2 dB allowed.
    assert report_with(distance(101), distance(101)).failures(Gates()) == []
    assert report_with(distance(), distance(101)).failures(Gates()) == []
    assert report_with(distance(), distance()).failures(Gates()) == []
    (failure,) = report_with(distance(102), distance(101)).failures(Gates())
    assert failure == "PSNR between outputs 52.9 dB, noise floor 58.9 dB"


def apart(psnr_db, values=10**6):
    """A distance of the given PSNR."""
    return Distance(values, values, 1, 255.0**2 * values / 10 ** (psnr_db / 10))


CLEAN = LayerParity("body.0", codes=10**6, flips=20, max_step=1, floor_flips=1)
DEVIATING = LayerParity("body.1", codes=10**6, flips=4500, max_step=3, floor_flips=1, furthest_steps=0.3125)


def test_clean_layers_pass_however_lucky_the_floor():
    runtime, floor = apart(50.0), apart(60.0)
    assert not report_with(runtime, floor).within_floor
    judged = report_with(runtime, floor)
    judged.layers = [CLEAN]
    assert judged.within_floor
    # A floor without any flip says nothing about ties; what a handful of them can do is still allowed.
    judged = report_with(apart(CLEAN_DB), distance())
    judged.layers = [CLEAN]
    assert judged.failures(Gates()) == []


def test_clean_layers_do_not_excuse_an_output_far_beyond_the_floor():
    for floor_db, limit in ((70.0, CLEAN_DB), (50.0, 50.0 - CLEAN_FACTOR_DB)):
        for margin, verdict in ((0.1, True), (-0.1, False)):
            judged = report_with(apart(limit + margin), apart(floor_db))
            judged.layers = [CLEAN]
            assert judged.within_floor is verdict, (floor_db, margin)


def test_a_deviating_layer_fails_whatever_the_output_and_is_named():
    milder = LayerParity("body.2", codes=10**6, flips=300, max_step=1)
    judged = report_with(apart(80.0), apart(40.0))
    judged.layers = [CLEAN, milder, DEVIATING]
    assert judged.deviating_layers == [milder, DEVIATING]
    assert not judged.within_floor
    layers, output = judged.failures(Gates())
    assert layers == (
        "2 layers flip more codes than ties explain, worst body.1: 0.45% of its codes by up to 3, "
        "up to 0.31 steps from a tie"
    )
    assert output == "PSNR between outputs 80.0 dB, noise floor 40.0 dB"
    assert judged.to_dict(Gates())["passed"] is False


def test_gates_are_asked_instead_of_the_layers():
    judged = report_with(distance(101), distance())
    judged.layers = [DEVIATING]
    assert judged.failures(Gates(max_lsb=1)) == []


def test_the_furthest_draw_is_the_floor():
    judged = report_with(apart(50.0), apart(60.0))
    judged.draws = [apart(58.0), apart(51.5), distance()]
    assert judged.furthest_floor_db == pytest.approx(51.5)
    assert judged.within_floor
    judged.draws.pop(1)
    assert not judged.within_floor
    floor = judged.to_dict(Gates())["noise_floor"]
    assert floor["psnr_between_db"] == pytest.approx(60.0)
    assert floor["furthest_psnr_between_db"] == pytest.approx(58.0)
    assert [draw["psnr_between_db"] for draw in floor["draws"]] == [pytest.approx(58.0), math.inf]


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
    assert document["layers"][0] == {
        "name": "a",
        "flip_rate": 0.25,
        "tie_flip_rate": 0.0,
        "furthest_from_tie_steps": 0.0,
        "floor_flip_rate": 0.0,
        "max_step": 1,
        "float_error_steps": 0.0,
        "codes": 4,
    }
    assert document["passed"] is True
    assert report.to_dict(Gates(max_lsb=0))["passed"] is False
