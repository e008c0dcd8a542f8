"""Lowered graphs compute what the torch reference computes: to the bit where arithmetic is exact, else up to ties."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import onnx
import pytest

from odm_deploy import __version__
from odm_deploy.checkpoint import save_model
from odm_deploy.errors import UsageError
from odm_deploy.grid import Grid
from odm_deploy.lowering.lint import lint
from odm_deploy.lowering.lower import LoweringOptions, lower
from odm_deploy.proof.layer_parity import OUTPUT
from odm_deploy.proof.reference import TorchReference
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.layers import QuantizedLinear
from tests.factories import (
    OPENERS,
    WEIGHT_KINDS,
    GridKind,
    exact_model,
    lowered,
    model_of_all_kinds,
    quantized,
    random_images,
    tiny_model,
    tiny_network,
)

MOST_FLIPS = 1e-4
"""Share of codes that may flip by one where scales are ordinary: x / s rounds before the code does."""


def test_the_models_under_test_cover_every_width_and_kind():
    for power_of_two in (False, True):
        body = [layer for name, layer in model_of_all_kinds(power_of_two=power_of_two).layers.items() if "body" in name]
        assert {(layer.grid.bits, layer.grid.is_free) for layer in body} == set(
            itertools.product(range(2, 9), [False, True])
        )
        codes = [layer.weight_codes for layer in body]
        assert {weights.step for weights in codes} == {1, 2}
        assert {weights.scale.numel() for weights in codes} == {1, 4}
    eight = [layer.grid for layer in body if layer.grid.bits == 8 and not layer.grid.is_free]
    assert {grid.zero_point % 2 for grid in eight} == {0, 1}
    assert min(grid.zero_point for grid in eight) == 0


def test_power_of_two_arithmetic_is_exact_in_the_reference_itself():
    model, images = model_of_all_kinds(power_of_two=True), random_images(13, 18)
    np.testing.assert_array_equal(
        TorchReference(model).upscale(images), TorchReference(model, "float64").upscale(images)
    )


@pytest.mark.parametrize("opener", OPENERS)
def test_power_of_two_scales_agree_to_the_bit(opener):
    model = model_of_all_kinds(power_of_two=True)
    proto = lowered(model)
    images = random_images(13, 18, count=2)
    with OPENERS[opener](proto.SerializeToString()) as runtime:
        np.testing.assert_array_equal(runtime.upscale(images), TorchReference(model).upscale(images))
    layers = compare_layers(model, proto, OPENERS[opener], [random_images(9, 11, seed=4)])
    assert [layer.name for layer in layers] == [*model.layers, OUTPUT]
    assert [layer.flips for layer in layers] == [0] * len(layers)


@pytest.mark.parametrize("opener", OPENERS)
def test_ordinary_scales_flip_hardly_a_code_in_any_layer(opener):
    model = model_of_all_kinds(power_of_two=False)
    layers = compare_layers(model, lowered(model), OPENERS[opener], [random_images(16, 20), random_images(7, 24)])
    assert [layer.name for layer in layers] == [*model.layers, OUTPUT]
    assert max(layer.max_step for layer in layers) <= 1
    if opener == "onnxruntime":
        # Behind a convolution, a quantizer without bounds or shift is fused into it, and ONNX Runtime then rounds the
        # bias to a multiple of both scales' product.
        bare = {name for name, layer in model.layers.items() if _is_bare(layer.grid)}
        layers = [layer for layer in layers if layer.name not in bare]
    assert sum(layer.flips for layer in layers) <= MOST_FLIPS * sum(layer.codes for layer in layers)


def _is_bare(grid: Grid) -> bool:
    """Whether a grid lowers to nothing but Q and DQ."""
    return grid.bits == 8 and grid.zero_point == 128 and not grid.is_free


@pytest.mark.parametrize(("bits", "grid", "weight"), [(8, "asymmetric", "per_layer"), (2, "free", "mid_rise")])
@pytest.mark.parametrize("opener", ["onnx_reference", "onnxruntime", "onnxruntime_unfused"])
def test_ordinary_scales_agree_end_to_end(opener, bits, grid, weight):
    model, images = tiny_model(bits, grid, weight), random_images(24, 32, seed=3)
    with OPENERS[opener](lowered(model).SerializeToString()) as runtime:
        difference = np.abs(runtime.upscale(images) - TorchReference(model).upscale(images))
    # A flipped code moves its neighbourhood by a step; rounding alone moves nothing by more than 1e-3.
    assert np.mean(difference > 1e-3) < 0.01
    assert difference.max() < 4


def test_linear_layers_on_tokens_are_exact_at_every_kind_of_grid():
    cases: list[tuple[int, GridKind]] = [
        (8, "asymmetric"),
        (3, "free"),
        (8, "negative"),
        (4, "asymmetric"),
        (8, "free"),
    ]
    model = quantized(
        tiny_network("swinir"), lambda index, _: (*cases[index % len(cases)], WEIGHT_KINDS[index % len(WEIGHT_KINDS)])
    )
    linear = [layer.grid for layer in model.layers.values() if isinstance(layer, QuantizedLinear)]
    assert {(grid.bits, grid.is_free) for grid in linear} == {(8, False), (3, True), (4, False), (8, True)}
    proto, images = lowered(model), random_images(13, 18)
    for opener in ("onnx_reference", "onnxruntime"):
        layers = compare_layers(model, proto, OPENERS[opener], [images])
        assert [layer.name for layer in layers] == [*model.layers, OUTPUT]
        assert sum(layer.flips for layer in layers) <= MOST_FLIPS * sum(layer.codes for layer in layers)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 5), (3, 16, 40)])
def test_batch_height_and_width_are_dynamic(shape):
    count, height, width = shape
    model = exact_model()
    proto = lowered(model)
    dims = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in
            (proto.graph.input[0], proto.graph.output[0])]  # fmt: skip
    assert dims == [["n", 3, "h", "w"], ["n", 3, "2*h", "2*w"]]
    images = random_images(height, width, count)
    for opener in OPENERS.values():
        with opener(proto.SerializeToString()) as runtime:
            output = runtime.upscale(images)
        assert output.shape == (count, 3, 2 * height, 2 * width)
        np.testing.assert_array_equal(output, TorchReference(model).upscale(images))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("io", [("float32", "nchw"), ("uint8", "nchw"), ("uint8", "nhwc")])
@pytest.mark.parametrize("bits", [2, 8])
def test_lint_finds_nothing_in_our_own_graphs(bits, precision, io):
    kind, layout = io
    assert lint(lowered(tiny_model(bits), precision=precision, io=kind, layout=layout)) == []


def test_lint_finds_nothing_at_any_width_or_kind():
    for power_of_two in (False, True):
        model = model_of_all_kinds(power_of_two=power_of_two)
        findings = lint(lowered(model))
        # A symmetric 8-bit grid behind a ReLU wastes half of its codes, and lint says so: the model asked for it.
        assert {finding.rule for finding in findings} <= {"relu-half-range"}
        for finding in findings:
            (layer,) = [name for name in model.layers if finding.node.startswith(f"{name}.")]
            assert (model.layers[layer].grid.bits, model.layers[layer].grid.zero_point) == (8, 128)


def test_graph_carries_nothing_but_its_taps():
    proto = lowered(tiny_model())
    graph = proto.graph
    assert (proto.producer_name, proto.producer_version, graph.name) == ("odm-deploy", __version__, "edsr")
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    assert [entry.key for entry in proto.metadata_props] == ["odm.taps"]
    notes = [graph.doc_string, *(item.doc_string for item in (*graph.node, *graph.initializer, *graph.input))]
    assert not any(notes)
    holders = (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    assert not any(len(item.metadata_props) for item in holders)
    assert b".py" not in proto.SerializeToString()


def test_no_marker_and_no_unused_constant_is_left():
    for precision in ("fp32", "fp16"):
        proto = lowered(tiny_model(8), precision=precision)
        assert {node.domain for node in proto.graph.node} == {""}
        used = {name for node in proto.graph.node for name in node.input}
        assert {tensor.name for tensor in proto.graph.initializer} <= used


def test_nodes_of_layers_are_named_like_the_layers():
    model = tiny_model()
    names = {node.name for node in lowered(model).graph.node if node.op_type == "Conv"}
    assert set(model.layers) | {"head.0", "tail.0.0", "tail.1"} == names


def test_equal_models_give_equal_bytes_in_one_process_and_in_two(tmp_path):
    first = lowered(tiny_model()).SerializeToString(deterministic=True)
    assert lower(tiny_model()).SerializeToString(deterministic=True) == first
    save_model(tiny_model(), tmp_path / "model.pt")
    program = f"""
from odm_deploy.checkpoint import load_model
from odm_deploy.lowering.lower import lower
data = lower(load_model({str(tmp_path / "model.pt")!r})).SerializeToString(deterministic=True)
open({str(tmp_path / "model.onnx")!r}, "wb").write(data)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == first


def test_lowering_leaves_the_model_as_it_is():
    model, images = exact_model(), random_images(9, 12)
    before = TorchReference(model).upscale(images)
    lower(model, LoweringOptions("fp16", "uint8", "nhwc"))
    np.testing.assert_array_equal(TorchReference(model).upscale(images), before)


def test_result_passes_the_checker_and_infers_its_output_type():
    proto = lowered(tiny_model(), io="uint8", layout="nhwc", precision="fp16")
    onnx.checker.check_model(proto, full_check=True)
    (image,), (output,) = proto.graph.input, proto.graph.output
    assert image.type.tensor_type.elem_type == output.type.tensor_type.elem_type == onnx.TensorProto.UINT8


@pytest.mark.parametrize("options", [{"layout": "nhwc"}, {"order": "bgr"}, {"layout": "nhwc", "order": "bgr"}])
def test_float_images_have_one_layout_and_one_order(options):
    with pytest.raises(UsageError, match=r"with --io float32: float images are NCHW and RGB; add --io uint8"):
        LoweringOptions(**options)
    assert LoweringOptions(io="uint8", **options).io == "uint8"
