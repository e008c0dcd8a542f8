"""The report in words: the verdict names what failed, the tables hold every figure beside its noise floor."""

from __future__ import annotations

import numpy as np
from rich.console import Console

from odm_deploy.proof.evaluation import Quality
from odm_deploy.proof.graph_check import GraphCheck
from odm_deploy.proof.layer_parity import LayerParity
from odm_deploy.proof.parity_report import Distance, Gates, ParityReport
from odm_deploy.proof.parity_text import (
    WORST_LAYERS,
    rows,
    summary_table,
    to_markdown,
    verdict,
    worst_layers_table,
)
from odm_deploy.proof.visibility import visibility


def distance(step):
    found = Distance()
    image = np.zeros((10, 10, 3), np.uint8)
    image[0, 0, 0] = step
    found.add(image, np.zeros_like(image))
    return found


def report(step=1, floor=1, *, truth=False):
    quality = Quality([31.5], [0.912345]) if truth else Quality()
    layers = [LayerParity(f"body.{index}", 1_000_000, index, min(index, 1), tie_flips=index // 3) for index in range(8)]
    return ParityReport(
        {"runtime": "onnxruntime", "version": "1.2"}, 3, distance(step), distance(floor), quality, quality, layers
    )


def rendered(table):
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_the_verdict_says_how_far_apart_the_outputs_are_or_what_failed():
    assert verdict(report(0), Gates()) == "onnxruntime computes the reference, bit for bit, on 3 images"
    agrees = verdict(report(1), Gates())
    assert agrees == (
        "onnxruntime computes the reference, layer by layer; rounding ties then spread, and leave the pictures 72.9 dB "
        "apart, invisible (noise floor 72.9 dB; 99.67% of the values identical, none further than 1 step apart)"
    )
    refuses = verdict(report(9), Gates(max_lsb=4, min_identical=0.999))
    assert refuses.startswith("onnxruntime does NOT compute the reference: largest difference 9 steps (allowed: 4); ")
    assert "identical values 99.6667%" in refuses


def test_rows_put_the_floor_beside_every_figure():
    assert rows(report(2, 1)) == [
        ("identical values", "99.6667%", "99.6667%"),
        ("largest difference", "2 of 255", "1 of 255"),
        ("PSNR between the outputs", "66.9 dB", "72.9 dB"),
    ]
    assert rows(report(0, 0))[2] == ("PSNR between the outputs", "identical", "identical")
    assert rows(report(truth=True))[3:] == [
        ("PSNR-Y, runtime / reference", "31.500 dB", "31.500 dB"),
        ("SSIM-Y, runtime / reference", "0.9123", "0.9123"),
    ]


def test_constants_of_a_graph_that_another_version_wired_are_counted():
    counted = report()
    counted.graphs += [
        GraphCheck("model.onnx", 9, ["a scale is another"], ["an Add"], None),
        GraphCheck("model.cpu.onnx", 12, [], ["an Add instead of a Mul"], "odm-deploy 0.0"),
    ]
    assert [found for name, found, _ in rows(counted) if name.startswith("constants")] == [
        "8 of 9",
        "12 of 12, wired otherwise",
    ]


def test_draws_of_the_floor_get_a_row_and_the_furthest_the_verdict():
    drawn = report(2, 1)
    drawn.draws = [distance(1), distance(4)]
    assert rows(drawn)[3] == ("PSNR of jittered draws", "", "72.9, 60.9 dB")
    assert "66.9 dB apart, invisible (noise floor 60.9 dB;" in verdict(drawn, Gates())


def test_only_compared_layers_are_claimed_to_agree():
    unseen = report(1)
    unseen.layers = []
    assert "as far as rounding lets it compute itself" in verdict(unseen)
    assert "layer by layer" not in verdict(unseen)
    deviating = report(1)
    deviating.layers = [LayerParity("body.0", 1000, 500, 3)]
    assert "does NOT compute the reference: 1 layer flips" in verdict(deviating)
    gated = verdict(deviating, Gates(max_lsb=4))
    assert gated.startswith("onnxruntime meets the gates: the pictures are 72.9 dB apart")


def test_a_difference_is_visible_by_its_size_and_by_its_largest_value():
    flat = np.zeros((10, 10, 3), np.uint8)

    def apart(step, values):
        found = Distance()
        image = flat.copy()
        image.flat[:values] = step
        found.add(image, flat)
        return visibility(found.psnr_db, found.max_lsb)

    assert apart(0, 0) == "invisible"
    assert apart(1, 300) == "invisible"
    assert apart(3, 300) == "hardly visible"
    assert apart(5, 300) == "visible"
    # One value far off is seen, however small the mean.
    assert apart(17, 1) == "hardly visible"


def test_tables_show_the_worst_layers_first():
    text = rendered(worst_layers_table(report()))
    assert f"worst {WORST_LAYERS} of 8 layers" in text
    shown = [line.split()[1] for line in text.splitlines() if "body." in line]
    assert shown == ["body.7", "body.6", "body.5", "body.4", "body.3"]
    assert "7.00" in text
    assert "onnxruntime on 3 images" in rendered(summary_table(report()))


def test_markdown_holds_the_verdict_all_layers_and_the_runtime():
    text = to_markdown(report(truth=True), Gates())
    assert text.startswith("**onnxruntime computes the reference")
    assert text.count("| `body.") == 8
    assert "| `body.7` | 7.00 | 2.00 | 0.00 | 1 |" in text
    assert text.endswith("Runtime: runtime onnxruntime, version 1.2.\n")
    # Every table row has as many cells as its header.
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
