"""What exporting relies on in PyTorch's exporter, and what it leaves as it was."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from itertools import product

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnxscript import rewriter
from torch import nn

from odm_deploy import quantize
from odm_deploy.lowering import exporter
from odm_deploy.lowering.lower import lower
from odm_deploy.quantization.policy import QuantizationPolicy
from tests.exact_models import small_network
from tests.factories import OPENERS, quantized, random_images, tiny_model, tiny_network


def test_the_quadratic_rule_exists_and_is_only_taken_out_while_exporting():
    rules = rewriter._DEFAULT_REWRITE_RULES
    # A newer onnxscript that renames it would export large networks slowly again, and say nothing.
    assert [rule.name for rule in rules].count(exporter._QUADRATIC_RULE) == 1
    with exporter.without_quadratic_rewriting():
        assert exporter._QUADRATIC_RULE not in [rule.name for rule in rewriter._DEFAULT_REWRITE_RULES]
        assert len(rewriter._DEFAULT_REWRITE_RULES) == len(rules) - 1
    assert rewriter._DEFAULT_REWRITE_RULES is rules
    lower(tiny_model())
    assert rewriter._DEFAULT_REWRITE_RULES is rules


class _InPlace(nn.Module):
    """Writes into its input's own sum, which another part of it reads afterwards."""

    def forward(self, x):
        y = x + 1
        z = y * 2
        y.clamp_(0, 3)
        return y + z


class _Clipped(nn.Module):
    """Compares with whole numbers."""

    def forward(self, x):
        return torch.clamp(x, 0, 1)


class _Untranslated(nn.Module):
    """Uses an operator that the exporter takes apart."""

    def forward(self, x):
        return torch.square(x) + 1


def _exported(network: nn.Module) -> tuple[onnx.ModelProto, int]:
    """The graph as export makes it, and how many times the trace was traced once more."""
    from torch.onnx._internal.exporter import _fx_passes

    times = 0
    checked: list[torch.export.ExportedProgram] = []
    trace_again = _fx_passes.decompose_with_registry

    def counted(*arguments):
        nonlocal times
        times += 1
        return trace_again(*arguments)

    program = torch.export.export(network.eval(), (torch.zeros(1, 3, 8, 9),))
    with pytest.MonkeyPatch.context() as patch, exporter.quiet():
        patch.setattr(_fx_passes, "decompose_with_registry", counted)
        with exporter.without_second_trace(checked.append):
            made = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False)
        assert _fx_passes.decompose_with_registry is counted
    assert made is not None
    assert len(checked) == times
    return made.model_proto, times


@pytest.mark.parametrize(
    ("network", "again"),
    [(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.PixelShuffle(2)), 0), (_InPlace(), 1), (_Untranslated(), 1)],
)
def test_only_what_needs_it_is_traced_again(network, again):
    proto, times = _exported(network)
    assert times == again
    image = np.random.default_rng(0).normal(size=(1, 3, 8, 9)).astype(np.float32)
    (found,) = ReferenceEvaluator(proto).run(None, {proto.graph.input[0].name: image})
    with torch.no_grad():
        expected = network(torch.from_numpy(image.copy())).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


class _Whole(nn.Module):
    """Adds whole numbers, whose type the exporter converts."""

    def forward(self, x):
        return x + torch.arange(x.shape[-1]) * 2


@pytest.mark.parametrize(("network", "converted"), [(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 0), (_Whole(), 1)])
def test_types_are_converted_only_where_they_are_mixed(network, converted, monkeypatch):
    from torch.onnx._internal.exporter import _fx_passes

    times: list[int] = []
    insert = _fx_passes.insert_type_promotion_nodes
    monkeypatch.setattr(_fx_passes, "insert_type_promotion_nodes", lambda module: (times.append(1), insert(module)))
    program = torch.export.export(network.eval(), (torch.zeros(1, 3, 8, 9),))
    with exporter.quiet(), exporter.without_needless_promotion():
        made = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False)
    assert made is not None
    assert len(times) == converted
    image = np.random.default_rng(0).normal(size=(1, 3, 8, 9)).astype(np.float32)
    (found,) = ReferenceEvaluator(made.model_proto).run(None, {made.model_proto.graph.input[0].name: image})
    with torch.no_grad():
        np.testing.assert_allclose(found, network(torch.from_numpy(image)).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("network", "all_of_them"), [(nn.Sequential(nn.Conv2d(3, 4, 3)), False), (_Untranslated(), True)]
)
def test_only_translations_that_are_called_are_prepared(network, all_of_them):
    from onnxscript.function_libs.torch_lib import registration

    before = registration.default_registry
    program = torch.export.export(network.eval(), (torch.zeros(1, 3, 8, 9),))
    with exporter.with_translations_of(program):
        prepared = dict(registration.default_registry.items())
    assert registration.default_registry is before
    assert (len(prepared) == len(dict(before.items()))) == all_of_them
    assert ("aten::gelu" in prepared) == all_of_them


def test_so_are_they_in_the_first_export_of_a_process():
    code = """
import torch
from torch import nn
from odm_deploy.lowering import exporter
program = torch.export.export(nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 8, 9),))
with exporter.with_translations_of(program):
    from onnxscript.function_libs.torch_lib import ops, registration
    prepared = dict(registration.default_registry.items())
    print("aten::conv2d" in prepared, "aten::gelu" in prepared)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "True False"


def test_operators_that_mix_types_are_exported_a_second_time():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 12, 1), nn.PixelShuffle(2), _Clipped())
    model = quantize(module, QuantizationPolicy.parse("deploy", "8"), [torch.rand(1, 3, 16, 20) * 255])
    first, second = (lower(model).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", ["edsr", "swinir"])
@pytest.mark.parametrize("step", ["with_translations_of", "without_needless_promotion"])
def test_what_is_left_out_changes_no_byte(name, step, monkeypatch):
    network = tiny_network("swinir") if name == "swinir" else small_network(name)
    model = quantized(network, lambda *_: (4, "asymmetric", "per_channel"))
    without = lower(model)
    monkeypatch.setattr(exporter, step, lambda *_: nullcontext())
    assert lower(model).SerializeToString(deterministic=True) == without.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", ["edsr", "srresnet", "swinir"])
def test_tracing_once_changes_no_result(name, monkeypatch):
    network = tiny_network("swinir") if name == "swinir" else small_network(name)
    model = quantized(network, lambda *_: (4, "asymmetric", "per_channel"))
    once = lower(model)
    monkeypatch.setattr(exporter, "_writes", lambda _: True)
    twice = lower(model)
    if name != "swinir":  # of which the second trace leaves a needless Slice
        assert [node.op_type for node in once.graph.node] == [node.op_type for node in twice.graph.node]
    image = np.random.default_rng(0).uniform(0, 255, (1, 3, 16, 24)).astype(np.float32)
    results = [ReferenceEvaluator(proto).run(None, {"input": image})[0] for proto in (once, twice)]
    np.testing.assert_array_equal(*results)


class _Masked(nn.Module):
    """Writes numbers to the parts of a mask, one of them with nothing in it, as windows do that are not shifted."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.head, self.tail, self.shift = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1), shift

    def forward(self, x):
        mask = torch.zeros((1, *x.shape[2:], 1))
        parts = (slice(0, -4), slice(-4, -self.shift), slice(-self.shift, None))
        for value, (rows, columns) in enumerate(product(parts, parts)):
            mask[:, rows, columns, :] = value
        return self.tail(self.head(x) + mask.permute(0, 3, 1, 2))


@pytest.mark.parametrize("shift", [0, 2])
def test_writes_to_empty_slices_are_left_out(shift):
    torch.manual_seed(0)
    crops = [torch.from_numpy(random_images(16, 16, seed=seed)) for seed in range(2)]
    model = quantize(_Masked(shift), QuantizationPolicy.parse("deploy", "8"), crops)
    graph = lower(model)
    for size in ((9, 8), (16, 12)):
        images = random_images(*size)
        expected = model(torch.from_numpy(images)).numpy()
        for opened in OPENERS.values():
            with opened(graph.SerializeToString()) as runtime:
                assert np.abs(runtime.upscale(images) - expected).max() < 1e-3
