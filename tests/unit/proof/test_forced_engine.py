"""The cut graph for engines: one size throughout, the same values, every layer still int8. On a GPU: tests/gpu."""

from __future__ import annotations

import functools

import onnx
import pytest

from odm_deploy.building.build import build_engine
from odm_deploy.building.coverage import coverage
from odm_deploy.building.options import BuildOptions
from odm_deploy.errors import InputError
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.machine.builders import can_build, find_builder
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.proof.teacher_forcing import fix_shapes, force_by_teacher
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.runtimes.base import Runtime
from tests.factories import OPENERS, lowered, quantized, random_images, tiny_model, tiny_network

RTX = find_builder("tensorrt_rtx")
SIZE = (18, 21)
BYTES = {"precision": "fp16", "io": "uint8", "layout": "nhwc"}


@functools.cache
def swinir() -> QuantizedModel:
    return quantized(
        tiny_network("swinir"), lambda _, name: (8, "asymmetric", "per_channel") if "attn" in name else None
    )


def _codes(layer):
    return layer.name, layer.codes, layer.flips, layer.furthest_steps, layer.floats


@pytest.mark.parametrize(("make", "options"), [(tiny_model, {}), (tiny_model, BYTES), (swinir, {})])
def test_a_graph_of_one_size_computes_the_same(make, options):
    model = make()
    graph = lowered(model, **options)
    opened: list[Runtime] = []

    def open_fixed(data: bytes) -> Runtime:
        forced = onnx.ModelProto.FromString(data)
        fix_shapes(forced, graph, SIZE)
        opened.append(OPENERS["onnxruntime"](forced.SerializeToString()))
        return opened[0]

    images = [random_images(*SIZE)]
    fixed = compare_layers(model, graph, open_fixed, images)
    # Floats may round otherwise: kernels are chosen for a size.
    assert [_codes(layer) for layer in fixed] == [
        _codes(layer) for layer in compare_layers(model, graph, OPENERS["onnxruntime"], images)
    ]
    assert all(None not in info.shape for info in opened[0].inputs)


@pytest.mark.skipif(not can_build(RTX), reason=RTX.problem or "TensorRT-RTX cannot build here")
@pytest.mark.parametrize(("make", "options"), [(tiny_model, {}), (tiny_model, BYTES), (swinir, {})])
def test_every_layer_of_its_engine_is_int8(tmp_path, make, options):
    model = make()
    graph = lowered(model, **options)
    forced = force_by_teacher(graph).model
    fix_shapes(forced, graph, SIZE)
    onnx.save(forced, tmp_path / "model.onnx")
    shapes = InputShapes.static(1, *SIZE)
    built = build_engine(
        tmp_path / "model.onnx", tmp_path / "engine.plan", BuildOptions(builder=RTX.name, shapes=shapes)
    )
    covered = coverage(forced, built.layers, shapes)
    assert covered.int8_layers == covered.quantized_layers == len(model.layers)


def test_sizes_of_another_graph_are_not_taken():
    forced = force_by_teacher(lowered(tiny_model())).model
    with pytest.raises(InputError, match=r"the size of .*\.given is not known"):
        fix_shapes(forced, lowered(swinir()), SIZE)
