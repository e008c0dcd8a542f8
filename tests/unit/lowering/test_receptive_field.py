"""The receptive radius is the measured one: a NaN in one input pixel reaches exactly as far as the radius says."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from odm_deploy.imaging.tiling import tiled_bands
from odm_deploy.lowering.receptive_field import receptive_radius_px
from tests.factories import OPENERS, lowered, random_images, tiny_model

CHANNELS = 4
SIZE = 48


class Stack:
    """Layers one after another on [1, 4, H, W], each given as a tuple of its kind and numbers."""

    def __init__(self, layers):
        self.nodes, self.constants, self.scale = [], [], Fraction(1)
        name = "x"
        for index, (kind, *numbers) in enumerate(layers):
            attributes = numbers.pop() if numbers and isinstance(numbers[-1], dict) else {}
            name = getattr(self, f"_{kind}")(name, f"y{index}", *numbers, **attributes)
        image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, "h", "w"])
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "stack", [image], [result], self.constants)
        self.model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def _op(self, op, inputs, name, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def _weight(self, name, outputs, inputs, kernel):
        weight = np.ones((outputs, inputs, kernel, kernel), np.float32)
        self.constants.append(numpy_helper.from_array(weight, f"{name}.weight"))
        return f"{name}.weight"

    def _conv(self, x, name, kernel, dilation=1, stride=1):
        span = (kernel - 1) * dilation
        pads = [span // 2] * 2 + [math.ceil(span / 2)] * 2
        self.scale /= stride
        return self._op(
            "Conv", [x, self._weight(name, CHANNELS, CHANNELS, kernel)], name,
            pads=pads, dilations=[dilation] * 2, strides=[stride] * 2,
        )  # fmt: skip

    def _shuffle(self, x, name, factor):
        wide = self._op("Conv", [x, self._weight(name, CHANNELS * factor**2, CHANNELS, 1)], f"{name}.wide")
        self.scale *= factor
        return self._op("DepthToSpace", [wide], name, blocksize=factor, mode="CRD")

    def _unshuffle(self, x, name, factor):
        deep = self._op("SpaceToDepth", [x], f"{name}.deep", blocksize=factor)
        self.scale /= factor
        return self._op("Conv", [deep, self._weight(name, CHANNELS, CHANNELS * factor**2, 1)], name)

    def _resize(self, x, name, factor, mode="nearest", places="asymmetric", **attributes):
        self.constants.append(numpy_helper.from_array(np.array([1, 1, factor, factor], np.float32), f"{name}.scales"))
        self.scale *= Fraction(factor)
        return self._op(
            "Resize", [x, "", f"{name}.scales"], name,
            mode=mode, coordinate_transformation_mode=places, **attributes,
        )  # fmt: skip

    def _residual(self, x, name, kernel):
        return self._op("Add", [x, self._conv(x, f"{name}.branch", kernel)], name)

    def _relu(self, x, name):
        return self._op("Relu", [x], name)


def measured_radius(model: onnx.ModelProto, scale: float, channels: int = CHANNELS) -> int:
    """How far from its own place the effect of one input pixel is seen, in input pixels, over all phases of pixels."""
    farthest = 0
    with OPENERS["onnxruntime_unfused"](model.SerializeToString()) as runtime:
        (source,), (sink,) = runtime.inputs, runtime.outputs
        for at in range(SIZE // 2, SIZE // 2 + 4):
            image = np.ones((1, channels, SIZE, SIZE), np.float32)
            image[..., at, at] = np.nan
            reached = np.isnan(runtime.run({source.name: image})[sink.name]).any((0, 1, 2)).nonzero()[0]
            places = np.floor(reached / scale).astype(int)
            farthest = max(farthest, int(np.abs(places - at).max()))
    return farthest


layer = st.one_of(
    st.tuples(st.just("conv"), st.sampled_from([1, 2, 3, 4, 5]), st.integers(1, 2)),
    st.tuples(st.just("residual"), st.sampled_from([1, 3])),
    st.tuples(st.just("shuffle"), st.integers(2, 3)),
    st.tuples(st.just("relu")),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(layer, min_size=1, max_size=5).filter(lambda layers: sum(each[0] == "shuffle" for each in layers) < 3))
def test_radius_is_the_measured_one(layers):
    stack = Stack([each for each in layers if each != ("relu",)] or [("conv", 3)])
    assert receptive_radius_px(stack.model) == measured_radius(stack.model, stack.scale)


@pytest.mark.parametrize(
    ("layers", "step", "exact"),
    [
        ([("conv", 3, 1, 2), ("shuffle", 2)], 2, True),
        ([("conv", 3), ("conv", 3, 1, 2), ("conv", 3), ("shuffle", 2), ("conv", 3)], 2, False),
        ([("unshuffle", 2), ("conv", 3), ("shuffle", 2)], 2, True),
        ([("unshuffle", 4), ("conv", 3), ("shuffle", 4)], 4, True),
        ([("unshuffle", 4), ("shuffle", 2), ("shuffle", 2), ("conv", 5)], 4, False),
    ],
)
def test_radius_covers_everything_seen_through_coarser_tensors(layers, step, exact):
    stack = Stack(layers)
    radius, measured = receptive_radius_px(stack.model), measured_radius(stack.model, stack.scale)
    assert radius >= measured
    assert radius % step == 0
    assert not exact or radius == math.ceil(measured / step) * step


ENLARGEMENTS = [
    [("resize", 2, "nearest", "asymmetric", {"nearest_mode": "floor"}), ("conv", 3)],
    [("conv", 3), ("resize", 3, "nearest", "asymmetric", {"nearest_mode": "floor"})],
    [("resize", 2, "nearest", "half_pixel")],
    [("resize", 4, "nearest", "half_pixel", {"nearest_mode": "ceil"})],
    [("conv", 3), ("resize", 2, "linear", "half_pixel"), ("conv", 3), ("resize", 2, "linear", "asymmetric")],
    [("resize", 4, "cubic", "half_pixel"), ("conv", 3)],
]


@pytest.mark.parametrize("layers", ENLARGEMENTS, ids=str)
def test_radius_covers_what_enlargements_see(layers):
    stack = Stack(layers)
    assert receptive_radius_px(stack.model) >= measured_radius(stack.model, stack.scale)


def test_nearest_pixels_see_nothing_further():
    assert receptive_radius_px(Stack([("conv", 3), *ENLARGEMENTS[0]]).model) == 2


COARSER = [
    [("unshuffle", 2), ("conv", 3), ("shuffle", 4)],
    [("unshuffle", 4), ("conv", 3), ("shuffle", 4)],
    [("conv", 3, 1, 2), ("conv", 3), ("resize", 2, "nearest", "asymmetric", {"nearest_mode": "floor"})],
]


@pytest.mark.parametrize("runtime", ["onnxruntime_unfused", "openvino"])
@pytest.mark.parametrize("layers", ENLARGEMENTS + COARSER, ids=str)
def test_tiles_are_the_whole_image(layers, runtime):
    """Small whole numbers, whose sums and dyadic parts no float32 rounds: the same bits at every size."""
    stack = Stack(layers)
    draws = np.random.default_rng(0)
    for tensor in stack.constants:
        if tensor.name.endswith(".weight"):
            values = draws.integers(-2, 3, list(tensor.dims)).astype(np.float32)
            stack.model.graph.initializer[stack.constants.index(tensor)].CopyFrom(
                numpy_helper.from_array(values, tensor.name)
            )
    image = draws.integers(0, 16, (1, CHANNELS, 64, 80)).astype(np.float32)
    radius = receptive_radius_px(stack.model)
    with OPENERS[runtime](stack.model.SerializeToString()) as opened:
        (source,), (sink,) = opened.inputs, opened.outputs

        def run(pixels):
            return opened.run({source.name: np.ascontiguousarray(pixels)})[sink.name]

        whole = run(image)
        for side in (24, 32, 40):
            bands = tiled_bands(run, image, tile=side, overlap=radius, scale=int(stack.scale))
            np.testing.assert_array_equal(np.concatenate(list(bands), axis=2), whole)


@pytest.mark.parametrize(
    "layer",
    [
        ("resize", 2, "linear", "align_corners"),
        ("resize", 3, "linear", "half_pixel"),
        ("resize", 1.5, "nearest", "asymmetric", {"nearest_mode": "floor"}),
        ("resize", 2, "cubic", "half_pixel", {"exclude_outside": 1}),
        ("resize", 2, "linear", "half_pixel", {"antialias": 1}),
    ],
    ids=str,
)
def test_enlargements_that_differ_between_tiles_have_no_radius(layer):
    assert receptive_radius_px(Stack([layer]).model) is None


@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}, {"io": "uint8", "layout": "nhwc"}], ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_edsr_sees_all_its_convolutions_whatever_the_edges(bits, options):
    # Head, two blocks of two, body end and upsampler at input size; the last 3x3 works on pixels half as large.
    assert receptive_radius_px(lowered(tiny_model(bits), **options)) == 8


def test_pixels_beyond_the_radius_change_nothing_in_a_quantized_network():
    model = lowered(tiny_model(4))
    radius = receptive_radius_px(model)
    images = random_images(40, 40)
    changed = images.copy()
    changed[..., 20, 20] = 255 - changed[..., 20, 20]
    with OPENERS["onnx_reference"](model.SerializeToString()) as runtime:
        rows = (runtime.upscale(images) != runtime.upscale(changed)).any((0, 1, 3)).nonzero()[0] // 2
    assert 20 - radius <= rows.min() <= 20 <= rows.max() <= 20 + radius


@pytest.mark.parametrize("op", ["MatMul", "GlobalAveragePool", "Softmax", "Resize", "ReduceMean"])
def test_operators_that_look_anywhere_have_no_radius(op):
    stack = Stack([("conv", 3)])
    stack.model.graph.node.append(helper.make_node(op, ["y0", "y0"] if op == "MatMul" else ["y0"], ["far"]))
    stack.model.graph.output[0].name = "far"
    assert receptive_radius_px(stack.model) is None


def test_output_that_does_not_depend_on_the_image_has_no_radius():
    stack = Stack([("conv", 3)])
    stack.model.graph.node.append(helper.make_node("Identity", ["y0.weight"], ["constant"]))
    stack.model.graph.output[0].name = "constant"
    assert receptive_radius_px(stack.model) is None
