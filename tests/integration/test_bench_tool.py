"""`make bench`: rivals, counters and the comparison of ratios, on a network of a few channels."""

from __future__ import annotations

import importlib
import json
import re
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from odm_deploy.accounting import count_macs
from odm_deploy.bench.steadiness import Timing
from odm_deploy.bench.timing import Effort, time_runs
from odm_deploy.errors import InputError, OdmError
from odm_deploy.lowering.lower import LoweringOptions, lower
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.runtimes.base import RunTimes
from tests.exact_models import small_network
from tests.factories import random_images, tiny_model
from tests.tool_modules import TOOLS, load_tool

SIZE = (24, 32)


@pytest.fixture(scope="module", autouse=True)
def tools_on_the_path():
    sys.path.append(str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


def part(name: str):
    return importlib.import_module(f"benchmark.{name}")


def test_every_form_runs_at_its_size_and_is_close_to_the_float_network(tmp_path):
    network = small_network("edsr")
    plain = lower(QuantizedModel(network))
    images = [random_images(*SIZE, seed=seed) for seed in range(4)]
    static = tmp_path / "static.onnx"
    # 7 bits: rivals' files are opened as they are, and sums of 8 bits saturate on some CPUs.
    part("rivals").onnxruntime_static(plain, images, static, seven_bits=True)
    graph = lower(tiny_model(8), LoweringOptions(target="cpu"))
    make = part("variants").Variant
    variants = [
        make("float", "onnxruntime", "fp32", plain),
        make("float", "openvino", "fp32", plain),
        make("onnxruntime.quantization", "onnxruntime", "fp32", static),
        make("onnxruntime.quantization", "openvino", "fp32", static),
        make("paper 8", "openvino", "fp32", graph),
    ]
    opened = [variant.open(SIZE) for variant in variants]
    image = images[0]
    runs = time_runs(opened, {"input": image}, Effort(iterations=2))
    assert [len(times) for times in runs] == [2] * 5
    of_float, again, *of_rival, _ = [each.upscale(image) for each in opened]
    spread = float(of_float.std())
    assert float(np.abs(of_float - again).mean()) < 1e-3 * spread
    for each in of_rival:
        assert float(np.abs(of_float - each).mean()) < 0.2 * spread
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


UNSTEADY = {"steady": False, "spread_ms": [192.0, 378.0]}


def test_only_ratios_that_got_worse_are_told_and_unsteady_rows_do_not_count():
    committed = {"rows": [row("a", 4.0), row("b", 2.0), row("d", 3.0), row("e", 3.0) | UNSTEADY]}
    found = {
        "rows": [row("a", 3.5), row("b", 1.9), row("c", 0.1), row("d", 1.0) | UNSTEADY | {"ms": 200.0}, row("e", 1.0)]
    }
    assert part("results").worse_ratios(committed, found) == ["edsr 320x180, a: 3.50 against 4.00"]
    assert part("results").unsteady_rows(committed, found) == ["edsr 320x180, d, 192.0 to 378.0 ms"]


def at_best(variant: str, speedup: float) -> dict[str, object]:
    return row(variant, 9.0) | UNSTEADY | {"ms": 200.0, "best_ms": 190.0, "best_speedup": speedup}


def test_rows_that_are_not_both_steady_are_compared_at_best_where_both_can_be():
    committed = {
        "rows": [
            row("a", 4.0) | {"best_speedup": 3.0},
            at_best("b", 3.0),
            row("c", 3.0),
            at_best("d", 3.0),
            row("e", 4.0) | {"best_speedup": 1.0},
            row("float, onnxruntime", 1.0) | {"best_speedup": 1.0},
        ]
    }
    found = {
        "rows": [
            at_best("a", 2.5),
            at_best("b", 2.9),
            # Of an older file, a committed row has a median only.
            at_best("c", 1.0),
            row("d", 1.0) | {"best_ms": None, "best_speedup": None},
            row("e", 3.5) | {"best_speedup": 1.0},
            at_best("float, onnxruntime", 1.0),
        ]
    }
    results = part("results")
    assert results.worse_ratios(committed, found) == [
        "edsr 320x180, a: 2.50 against 3.00 at best",
        "edsr 320x180, e: 3.50 against 4.00",
    ]
    assert results.comparable(committed, found) == (3, 2)
    assert results.unsteady_rows(committed, found) == ["edsr 320x180, c, 192.0 to 378.0 ms"]


@pytest.mark.parametrize(
    ("mine", "best_ms", "best_speedup"),
    [([50.0, 95.0] * 6, 50.0, 4.0), ([50.0 + step for step in range(0, 120, 10)], None, None)],
)
def test_a_row_tells_what_the_fastest_runs_say(mine, best_ms, best_speedup):
    network = SimpleNamespace(
        name="edsr",
        variants=[SimpleNamespace(key="a")],
        lost=dict,
        _int8_share=lambda _: None,
        _roof=lambda *_: None,
    )
    timing = Timing([RunTimes(ms) for ms in mine], [RunTimes(200.0) for _ in mine])
    found = part("forms").Forms.row(network, "a", timing, SIZE, {})
    assert (found["steady"], found["best_ms"], found["best_speedup"]) == (False, best_ms, best_speedup)


def test_a_check_that_compares_nothing_fails(tmp_path, monkeypatch, capsys):
    """It said that no ratio was worse. The float network's own, which is always 1, is none."""
    bench = load_tool("bench")
    committed, found = tmp_path / "bench" / "committed.json", tmp_path / "found.json"
    committed.parent.mkdir()
    known = [row("float, onnxruntime", 1.0), row("a", 4.0), row("b", 2.0)]
    committed.write_text(json.dumps({"features": ["AVX2"], "rows": known}))
    monkeypatch.setattr(bench, "COMMITTED", committed.parent)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    nothing = [
        row("float, onnxruntime", 1.0),
        row("a", 4.0) | {"size": [48, 48]},
        row("b", 1.0) | UNSTEADY | {"ms": 9.0},
    ]
    found.write_text(json.dumps({"rows": nothing}))
    with pytest.raises(InputError, match=r"no ratio of .*found\.json can be compared with bench/committed\.json: "):
        bench.compare(found)
    found.write_text(json.dumps({"rows": [*nothing, row("a", 3.9)]}))
    assert bench.compare(found) == 0
    # Another machine's instructions explain other ratios.
    assert re.search(r"^0 of 1 steady ratios .* bench/committed\.json \(AVX2\)$", capsys.readouterr().err, re.MULTILINE)
    committed.write_text(json.dumps({"features": ["AVX2"], "rows": [*known, at_best("c", 3.0)]}))
    found.write_text(json.dumps({"rows": [*nothing, row("a", 3.9), at_best("c", 2.0)]}))
    assert bench.compare(found) == 3
    assert "\n1 of 2 steady ratios (1 of them at best) are" in capsys.readouterr().err
    # Of several machines, that with the same instructions.
    (committed.parent / "another.json").write_text(json.dumps({"features": ["AVX2", "VNNI"], "rows": [row("a", 8.0)]}))
    for features, code in ((["AVX2"], 0), (["AVX2", "VNNI", "AMX"], 3)):
        found.write_text(json.dumps({"features": features, "rows": [row("a", 3.9)]}))
        assert bench.compare(found) == code


@pytest.mark.parametrize(
    "content", ["", "garbage", "[]", "null", "{}", '{"rows": 3}', '{"rows": [{"network": "edsr"}]}']
)
def test_a_check_of_what_is_no_result_is_one_error(content, tmp_path):
    (tmp_path / "found.json").write_text(content)
    with pytest.raises(InputError, match=r"found\.json"):
        load_tool("bench").compare(tmp_path / "found.json")


def test_the_summary_has_ours_that_lose_next_to_nothing_beside_the_fastest_of_each_rival():
    rows = [
        row("float, openvino", 1.2),
        row("integer 8, openvino", 4.5) | {"lost_db": 0.02},
        row("integer 8, openvino bf16", 4.9) | {"lost_db": 0.02} | UNSTEADY,
        row("integer 2, openvino", 5.0) | {"lost_db": 1.5},
        row("NNCF mixed, openvino bf16", 4.2) | {"lost_db": 0.1},
        row("NNCF performance, openvino", 4.1) | {"lost_db": 0.2},
        row("onnxruntime.quantization, openvino", 4.8) | UNSTEADY,
    ]
    table = part("results").summary({"rows": [{"lost_db": None, **each} for each in rows]})
    line = next(line for line in table.splitlines() if "| openvino |" in line)
    of_nncf, of_onnxruntime = "4.20 (NNCF mixed bf16, 0.100 dB)", "unsteady"
    assert line.split(" | ")[2:] == ["4.50 (integer 8, 0.020 dB)", of_nncf, of_onnxruntime, "1.20 |"]


def summary_cells(rows: list[dict[str, object]]) -> list[str]:
    """Of OpenVINO: ours, NNCF, onnxruntime.quantization, float."""
    table = part("results").summary({"rows": [{"lost_db": None, **each} for each in rows]})
    line = next(line for line in table.splitlines() if "| openvino |" in line)
    return [cell.strip() for cell in line.split("|")[3:-1]]


def test_a_summary_with_an_unsteady_row_compares_speeds_at_best():
    rows = [
        # Its median looks faster than what it is compared with at best.
        row("integer 8, openvino", 4.6) | {"lost_db": 0.02, "best_speedup": 4.1},
        at_best("engine 8, openvino bf16", 4.41) | {"lost_db": 0.022},
        row("NNCF mixed, openvino", 4.2) | {"best_speedup": 4.3},
        row("onnxruntime.quantization, openvino", 4.8) | UNSTEADY | {"best_speedup": None},
        row("float, openvino", 1.2) | {"best_speedup": None},
    ]
    expected = ["4.41 at best (engine 8 bf16, 0.022 dB)", "4.30 at best (NNCF mixed)", "unsteady"]
    # What is known at best by none of a cell is told by its median.
    assert summary_cells(rows) == [*expected, "1.20"]


def test_a_summary_whose_rows_are_all_steady_compares_medians():
    rows = [
        row("integer 8, openvino", 4.6) | {"best_speedup": 4.1},
        row("engine 8, openvino", 4.5) | {"best_speedup": 4.7},
    ]
    assert summary_cells(rows)[0] == "4.60 (integer 8)"


def test_one_row_at_best_among_steady_ones_of_few_runs_is_not_compared_with_them():
    rows = [at_best("integer 8, openvino", 4.1), row("engine 8, openvino", 4.0), row("paper 8, openvino", 3.9)]
    assert summary_cells(rows)[0] == "4.00 (engine 8)"
    rows += [row("exact 8, openvino", 3.0), at_best("NNCF mixed, openvino", 4.2)]
    # In its cell is nothing else that it could be taken for.
    assert summary_cells(rows)[:2] == ["4.00 (engine 8)", "4.20 at best (NNCF mixed)"]


def test_tables_put_unsteady_rows_last_and_name_no_speed():
    rows = [row("a", 9.0) | UNSTEADY | {"ms": 200.0}, row("b", 2.0) | {"ms": 100.0, "spread_ms": [99.0, 101.0]}]
    rows += [at_best("c", 4.0), at_best("d", 4.41)]
    document = {"machine": "m", "features": [], "peaks": {}, "rows": [row | REST for row in rows]}
    found = part("results").markdown(document).splitlines()
    lines = [line for line in found if line.startswith(("| a", "| b", "| c", "| d"))]
    assert lines == [
        "| b | 100.0 (99.0 to 101.0) | 2.00 |  |  |",
        "| d | 200.0 (192.0 to 378.0) | 4.41 at best |  |  |",
        "| c | 200.0 (192.0 to 378.0) | 4.00 at best |  |  |",
        "| a | 200.0 (192.0 to 378.0) | unsteady |  |  |",
    ]


@pytest.mark.parametrize(
    ("limit", "bf16", "told"),
    [
        (None, True, []),
        ("", True, []),
        ("AVX512_CORE_BF16", True, ["ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16"]),
        ("avx512_core_vnni", False, ["ONEDNN_MAX_CPU_ISA=avx512_core_vnni"]),
    ],
)
def test_the_limit_that_the_environment_sets_to_instructions_counts(monkeypatch, limit, bf16, told):
    module = part("instructions")
    monkeypatch.setattr(module, "cpu_features", lambda: ("AVX512-VNNI", "AVX512-BF16"))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert module.instructions() == ["AVX512-VNNI", "AVX512-BF16", *told]
    assert module.has_bf16() == bf16
    monkeypatch.setattr(module, "cpu_features", lambda: ("AVX512-VNNI",))
    assert not module.has_bf16()


REST = {"lost_db": None, "int8_share": None}


class Shelf:
    """So much memory that three models of one unit fit, and who is open in it."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.most = 0

    def available(self) -> int:
        return (9 << 30) - (2 << 30) * len(self.open)

    def variant(self, key: str) -> Any:
        class Model:
            def timed_run(self, _feeds: object) -> RunTimes:
                return RunTimes(float(len(key)))

            close = partial(self.open.remove, key)

        def open_it(_size: object) -> Model:
            if key == "broken":
                raise OdmError("it does not load")
            self.open.append(key)
            self.most = max(self.most, len(self.open))
            return Model()

        return SimpleNamespace(key=key, open=open_it)


def test_variants_that_do_not_fit_together_are_timed_in_groups_beside_the_same_float_network():
    shelf = Shelf()
    variants = [shelf.variant(key) for key in ("float", "a", "bb", "broken", "ccc", "dddd")]
    groups = list(part("measuring").timings(variants, variants[0], SIZE, 1e-3, shelf.available))
    assert [list(group) for group in groups] == [["float", "a", "bb"], ["float", "ccc", "dddd"]]
    assert shelf.most == 3
    assert shelf.open == []
    assert {run.latency_ms for run in groups[1]["ccc"].base} == {5.0}
    assert {run.latency_ms for run in groups[1]["ccc"].runs} == {3.0}


def test_a_variant_that_fits_nowhere_is_tried_alone_and_rows_before_it_are_known_by_then():
    shelf = Shelf()
    variants = [shelf.variant(key) for key in ("float", "a", "bb")]
    groups = part("measuring").timings(variants, variants[0], SIZE, 1e-3, lambda: 1 << 29)
    assert list(next(groups)) == ["float", "a"]
    assert shelf.open == ["float"]
    assert list(next(groups)) == ["float", "bb"]
    assert next(groups, None) is None


def test_memory_is_what_the_machine_has_or_what_the_container_may(tmp_path):
    found = part("memory").available_bytes
    (tmp_path / "meminfo").write_text("MemTotal: 8000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\n")
    assert found(tmp_path / "meminfo", tmp_path) == 4000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    for limit, left in (("max", 4000 * 1024), ("3000", 2000)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert found(tmp_path / "meminfo", tmp_path) == left
    assert found(tmp_path / "missing", tmp_path) is None


def test_peaks_are_measured_on_small_products_where_kernels_are_slow(monkeypatch):
    roofline, tried = part("roofline"), list[int]()

    def make(n: int):
        tried.append(n)
        return n, lambda *_: None

    assert roofline._peak(make) > 0
    assert tried == list(roofline.SIZES)
    tried.clear()
    monkeypatch.setattr(roofline, "LONGEST_S", 0.0)
    assert roofline._peak(make) > 0
    assert tried == [roofline.SIZES[0]]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_rivals_file_that_does_not_load_is_left_out_and_the_others_timed(runtime, tmp_path, capsys):
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    variants = part("variants")
    broken = variants.Variant("NNCF mixed", runtime, "fp32", tmp_path / "broken.onnx")
    plain = variants.Variant("float", "onnxruntime", "fp32", lower(QuantizedModel(small_network("edsr"))))
    (group,) = part("measuring").timings([broken], plain, SIZE, 0.1, lambda: None)
    assert list(group) == ["float, onnxruntime"]
    assert f"left out: {runtime} does not load broken.onnx" in capsys.readouterr().err


def test_of_peaks_at_two_times_the_higher_count():
    now, before = {"fp32": 60.0, "bf16": None, "int8": 400.0}, {"fp32": 120.0, "bf16": 90.0}
    assert part("roofline").highest(now, before) == {"fp32": 120.0, "bf16": 90.0, "int8": 400.0}
    assert part("roofline").highest({"bf16": None}, {}) == {"bf16": None}
