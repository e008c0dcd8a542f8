"""uint8 images inside the graph equal conversion on the host, bit for bit, in both layouts and channel orders."""

from __future__ import annotations

import numpy as np
import pytest

from odm_deploy.proof.teacher_forced_layers import compare_layers
from tests.factories import OPENERS, exact_model, lowered, random_images, tiny_model


def host_side(output):
    """What a program does with the float graph's output: round half to even, clamp, convert."""
    return np.clip(np.rint(output), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("opener", OPENERS)
def test_edges_inside_the_graph_equal_edges_on_the_host(opener, layout, order):
    model = exact_model()
    images = random_images(9, 14, count=2)
    open_bytes = OPENERS[opener]
    with open_bytes(lowered(model).SerializeToString()) as runtime:
        host_float = expected = host_side(runtime.run({"input": images})["output"])
    given = images.astype(np.uint8)
    suffix = "_bgr" if order == "bgr" else ""
    if order == "bgr":
        given, expected = given[:, ::-1], expected[:, ::-1]
    if layout == "nhwc":
        given, expected = given.transpose(0, 2, 3, 1), expected.transpose(0, 2, 3, 1)
    with open_bytes(lowered(model, io="uint8", layout=layout, order=order).SerializeToString()) as runtime:
        found = runtime.run({f"input{suffix}": np.ascontiguousarray(given)})[f"output{suffix}"]
        # Callers of `upscale` need not know.
        through = runtime.upscale(images)
    np.testing.assert_array_equal(through, host_float)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_outputs_beyond_the_range_are_clamped_not_wrapped():
    model = tiny_model()
    proto = lowered(model, io="uint8")
    # Shift the mean that the network adds at its end far beyond both ends of 0..255.
    (shift,) = [node for node in proto.graph.node if node.output[0] == "output.float"]
    mean = next(tensor for tensor in proto.graph.initializer if tensor.name in shift.input)
    for offset, expected in ((1000.0, 255), (-1000.0, 0)):
        mean.raw_data = np.full(tuple(mean.dims), offset, np.float32).tobytes()
        with OPENERS["onnx_reference"](proto.SerializeToString()) as runtime:
            assert set(runtime.run({"input": random_images(4, 4).astype(np.uint8)})["output"].flat) == {expected}


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_axes_keep_their_names(layout):
    graph = lowered(tiny_model(), io="uint8", layout=layout).graph
    for value, sizes in ((graph.input[0], ("h", "w")), (graph.output[0], ("2*h", "2*w"))):
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert dims == (["n", 3, *sizes] if layout == "nchw" else ["n", *sizes, 3])
    assert (graph.input[0].name, graph.output[0].name) == ("input", "output")


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_layers_can_still_be_compared(layout, order):
    # The head reads the image itself here: its tap has to follow the image to where it is decoded.
    model = exact_model()
    proto = lowered(model, io="uint8", layout=layout, order=order)
    layers = compare_layers(model, proto, OPENERS["onnxruntime"], [random_images(9, 14)])
    assert [layer.flips for layer in layers] == [0] * (len(model.layers) + 1)
