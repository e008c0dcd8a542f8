"""What quantization cost, in words."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from rich.console import Console

from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.tuning.drawings import AreaCost
from odm_deploy.tuning.held_back import OutputCost, WorstImage
from odm_deploy.tuning.mixed_widths import MixedWidths
from odm_deploy.tuning.sensitivity import WEIGHTS, LayerSensitivity
from odm_deploy.tuning.text import (
    advice,
    areas_text,
    cost_text,
    lettering_text,
    mixed_text,
    sensitivity_table,
    worst_text,
)
from tests.factories import quantized, tiny_model, tiny_network

LAYERS = [
    LayerSensitivity("first", 8, 8, 1.0, 0.25),
    LayerSensitivity("second", 8, 8, 3.0, 0.5),
    LayerSensitivity("third", 8, 8, 0.0, 0.25),
]


def test_the_cost_is_a_figure_and_whether_it_is_seen():
    assert cost_text(OutputCost(2, 47.26, 9.0)) == (
        "cost, on 2 images: 47.3 dB between float and quantized output, invisible"
    )
    assert cost_text(OutputCost(1, 59.1, 22.6)).endswith("hardly visible (a value is 23 of 255 off)")
    worst = WorstImage("night.png", 41.24)
    assert cost_text(OutputCost(2, 43.1, 9.0, worst=worst)) == (
        "cost, on 2 images: 43.1 dB between float and quantized output (41.2 on night.png), hardly visible"
    )
    assert "night" not in cost_text(OutputCost(2, 41.9, 9.0, worst=worst))
    seen = WorstImage("night.png", 41.24, seen=True)
    assert "output (41.2 on night.png, seen in calibration), " in cost_text(OutputCost(1, 50.0, 9.0, worst=seen))
    known = OutputCost(1, 38.0, 40.0, 31.5, 31.44)
    assert cost_text(known).endswith("hardly visible; against the originals 31.50 -> 31.44 dB (-0.060)")
    lucky = OutputCost(1, 38.0, 40.0, 31.5, 31.44, 0.12)
    assert cost_text(lucky).endswith("31.50 -> 31.44 dB (-0.060; -0.120 may be lost on others)")
    unlucky = OutputCost(1, 38.0, 40.0, 31.5, 31.44, 0.03)
    assert cost_text(unlucky).endswith("31.50 -> 31.44 dB (-0.060)")
    assert cost_text(OutputCost(1, math.inf, 0.0)) == (
        "cost, on 1 image: nothing, float and quantized output are equal"
    )


def test_lettering_is_told_apart_with_what_helps_where_it_shows():
    assert lettering_text(OutputCost(1, 47.26, 9.0)) == "small lettering: 47.3 dB, a value is 9 of 255 off"
    for shows in (OutputCost(1, 47.0, 33.6), OutputCost(1, 31.0, 112.0)):
        assert lettering_text(shows).endswith(
            " of 255 off; images of it among --images, at the size of inputs (--lr), help"
        )
    assert lettering_text(OutputCost(1, math.inf, 0.0)) == "small lettering: float and quantized output are equal"
    stable, unstable = (OutputCost(1, psnr_db, 99.0) for psnr_db in (35.1, 14.5))
    assert lettering_text(OutputCost(1, 31.0, 112.0), stable) == lettering_text(OutputCost(1, 31.0, 112.0))
    assert lettering_text(OutputCost(1, 3.5, 254.8), unstable) == (
        "small lettering: 3.5 dB, a value is 255 of 255 off; the float network is unstable there: 14.5 dB by noise of "
        "half a step"
    )


def test_colours_that_are_tinted_are_named_worst_first():
    slight = [AreaCost("black", (0.0, 0.0, 0.0)), AreaCost("green", (0.5, -3.96, 1.0))]
    assert areas_text(slight) == "areas of one colour: at most 4.0 of 255 off"
    red, magenta = AreaCost("red", (-12.0, 1.0, 0.0), 0.9), AreaCost("magenta", (0.0, 3.0, 28.6), 2.7)
    tinted = [*slight, red, magenta]
    assert areas_text(tinted) == (
        "areas of one colour, of 255 off: magenta 29, red 12; the float network is unstable on magenta: up to 3 by "
        "noise of half a step; images of such areas among --images may help"
    )
    assert areas_text([*slight, magenta]) == (
        "areas of one colour, of 255 off: magenta 29; the float network is unstable on all: up to 3 by noise of half "
        "a step"
    )


def test_advice_names_the_layers_and_fits_what_is_known():
    drops = OutputCost(1, 38.0, 40.0, 31.5, 31.44)
    assert advice(drops, LAYERS) == (
        "to lose less: --max-drop 0.03 finds the layers that need more; by hand, --layer second=float "
        "--layer first=float; or train on: --finetune 5"
    )
    # With --layer, the layers that were left float to lose less would be quantized again.
    assert advice(drops, LAYERS, chosen=True) == (
        "to lose less: --max-drop 0.03 finds the layers that need more; or train on: --finetune 5"
    )
    narrow = [LayerSensitivity("only", 4, 8, 1.0, 1.0)]
    assert "--min-psnr 45" in advice(OutputCost(1, 38.0, 40.0), narrow)
    # Far from float, though the truth does not show it.
    assert "--min-psnr 45" in advice(OutputCost(1, 38.0, 40.0, 22.28, 22.27), LAYERS)
    assert "--layer only=8;" in advice(OutputCost(1, 38.0, 40.0), narrow)
    assert "--max-drop" in advice(OutputCost(1, 50.0, 3.0, 31.5, 31.6, 0.1), LAYERS)
    # An exact model's layers get 8 bits and no more: `--layer NAME=float` and goals would be refused.
    assert "=float" not in advice(drops, LAYERS, exact=True)
    assert "--max-drop" not in advice(drops, LAYERS, exact=True)
    assert "--layer only=8;" in advice(drops, narrow, exact=True)
    # Each gets what it lacks: 8 bits more are nothing to a layer that has them.
    mixed = [*narrow, LayerSensitivity("wide", 8, 8, 2.0, 0.5)]
    assert "--layer wide=float --layer only=8;" in advice(drops, mixed)
    assert "by hand, --layer only=8;" in advice(drops, mixed, exact=True)
    # Those of --any-cpu get no more than 7 bits of weights.
    assert "--layer only=float;" in advice(drops, [LayerSensitivity("only", 7, 8, 1.0, 1.0)])
    # A loss on a benchmark is worth a word though nobody sees it; what nobody sees or measures is not.
    assert advice(OutputCost(1, 50.0, 3.0, 31.5, 31.4), LAYERS)
    assert advice(OutputCost(1, 50.0, 3.0, 31.5, 31.49), LAYERS) == ""


def test_layers_that_cost_nothing_are_not_named():
    assert worst_text([LayerSensitivity("only", 8, 8, 0.0, 1.0)]) == ""
    assert worst_text([]) == ""


def test_layers_are_listed_most_expensive_first():
    assert worst_text(LAYERS).startswith("most of it: second 75%, first 25%, third 0%")
    console = Console(width=120)
    with console.capture() as captured:
        console.print(sensitivity_table(LAYERS))
    lines = [line.split() for line in captured.get().splitlines() if "w8a8" in line]
    assert [line[1] for line in lines] == ["second", "first", "third"]
    assert "75.0%" in lines[0]
    assert "50.0%" in lines[0]
    assert "-" in lines[2]


def test_the_price_of_mixed_widths_is_told():
    model, cost = _at_8_bits("body.2"), OutputCost(1, 40.0, 9.0)
    mixed = MixedWidths(model, cost, cost, ("body.2",), ("b", "c"), 0.9, 0.81, 7)
    path = Path("4 bits.pt")
    assert mixed_text(mixed, path) == (
        "mixed widths: 1 layer at 8 bits (body.2) and 2 layers in float (b, c); quantized share of MACs 90.0% -> 81.0%"
    )
    many = mixed_text(MixedWidths(model, cost, cost, (), tuple("abcdef"), 0.9, 0.81, 7), path)
    assert many.startswith("mixed widths: 6 layers in float (a, b, c, 3 more); quantized share of MACs 90.0% -> ")
    assert many.endswith("(odm-deploy inspect '4 bits.pt' names all)")
    assert mixed_text(MixedWidths(model, cost, cost, (), (), 0.9, 0.9, 1), path).startswith("the goal is kept as it is")


def test_where_no_layer_keeps_the_fewer_bits_that_were_asked_for_that_is_told():
    model, cost, path = tiny_model(), OutputCost(1, 40.0, 9.0), Path("model.pt")
    names, told = tuple(model.layers), "and none at fewer bits (--bits 8 has less to search); quantized share"
    assert told in mixed_text(MixedWidths(model, cost, cost, names, (), 0.9, 0.9, 7), path)
    beside_float = mixed_text(MixedWidths(model, cost, cost, names, ("tail",), 0.9, 0.8, 7), path)
    assert f", 1 layer in float (tail) {told}" in beside_float
    one = MixedWidths(_at_8_bits(names[0]), cost, cost, names[:1], (), 0.9, 0.9, 7)
    assert "fewer" not in mixed_text(one, path)


def _at_8_bits(name: str) -> QuantizedModel:
    """A network whose body has 4 bits, apart from one layer."""
    return quantized(
        tiny_network(),
        lambda _, each: (8 if each == name else 4, "asymmetric", "per_channel") if each.startswith("body.") else None,
    )


def test_work_that_cannot_be_counted_is_told_as_a_share_of_the_weights():
    model, cost = _at_8_bits("body.2"), OutputCost(1, 40.0, 9.0)
    mixed = MixedWidths(model, cost, cost, ("body.2",), (), 0.9, 0.8, 7, WEIGHTS)
    assert mixed_text(mixed, Path("model.pt")).endswith(
        "quantized share of weights 90.0% -> 80.0% (its code does not run without data, so its MACs are not counted)"
    )
    console = Console(width=200)
    with console.capture() as captured:
        console.print(sensitivity_table([dataclasses.replace(each, share_of=WEIGHTS) for each in LAYERS]))
    assert "share of weights (its code" in captured.get()
    assert "MACs (" not in captured.get()
