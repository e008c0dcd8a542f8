"""`make bench`: rivals, counters and the comparison of ratios, on a network of a few channels."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from odm_deploy.accounting import count_macs
from odm_deploy.bench.timing import Effort, time_runs
from odm_deploy.lowering.lower import LoweringOptions, lower
from odm_deploy.quantization.model import QuantizedModel
from tests.exact_models import small_network
from tests.factories import random_images, tiny_model
from tests.tool_modules import TOOLS

SIZE = (24, 32)


@pytest.fixture(scope="module", autouse=True)
def tools_on_the_path():
    sys.path.append(str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


def part(name: str):
    return importlib.import_module(f"benchmark.{name}")


def test_every_form_runs_at_its_size_and_is_close_to_the_float_network():
    network = small_network("edsr")
    plain = lower(QuantizedModel(network))
    images = [random_images(*SIZE, seed=seed) for seed in range(4)]
    static = part("rivals").onnxruntime_static(plain, images)
    graph = lower(tiny_model(8), LoweringOptions(target="cpu"))
    make = part("variants").Variant
    variants = [
        make("float", "onnxruntime", "fp32", plain),
        make("float", "openvino", "fp32", plain),
        make("onnxruntime.quantization", "onnxruntime", "fp32", static),
        make("paper 8", "openvino", "fp32", graph),
    ]
    opened = [variant.open(SIZE) for variant in variants]
    image = images[0]
    runs = time_runs(opened, {"input": image}, Effort(iterations=2))
    assert [len(times) for times in runs] == [2] * 4
    of_float, again, of_rival, _ = [each.upscale(image) for each in opened]
    spread = float(of_float.std())
    assert float(np.abs(of_float - again).mean()) < 1e-3 * spread
    assert float(np.abs(of_float - of_rival).mean()) < 0.2 * spread
    for each in opened:
        each.close()


def test_openvinos_counters_name_the_layers_and_the_machine_bounds_them():
    model = tiny_model(8)
    found = part("profile").kernels(lower(model, LoweringOptions(target="cpu")), SIZE)
    macs = count_macs(model.network, (SIZE[0] * model.scale, SIZE[1] * model.scale))
    rows = part("profile").against_roof(found, macs, {"int8": 1e9, "fp32": 1e9})
    assert {name for name, *_ in rows} <= set(macs)
    assert all(ms > 0 and 0 < reached < 1 for _, _, ms, reached in rows)


def row(variant: str, speedup: float) -> dict[str, object]:
    return {"network": "edsr", "size": [180, 320], "variant": variant, "speedup": speedup}


def test_only_ratios_that_got_worse_are_told():
    committed = {"rows": [row("a", 4.0), row("b", 2.0)]}
    found = {"rows": [row("a", 3.5), row("b", 1.9), row("c", 0.1)]}
    assert part("results").worse_ratios(committed, found) == ["edsr 320x180, a: 3.50 against 4.00"]


def test_the_summary_has_ours_that_lose_next_to_nothing_beside_the_fastest_of_each_rival():
    rows = [
        row("float, openvino", 1.2),
        row("integer 8, openvino", 4.5) | {"lost_db": 0.02},
        row("integer 2, openvino", 5.0) | {"lost_db": 1.5},
        row("NNCF mixed, openvino bf16", 4.2) | {"lost_db": 0.1},
        row("NNCF performance, openvino", 4.1) | {"lost_db": 0.2},
    ]
    table = part("results").summary({"rows": [{"lost_db": None, **each} for each in rows]})
    line = next(line for line in table.splitlines() if "| openvino |" in line)
    assert line.split(" | ")[2:] == ["4.50 (integer 8, 0.020 dB)", "4.20 (NNCF mixed bf16, 0.100 dB)", "", "1.20 |"]
