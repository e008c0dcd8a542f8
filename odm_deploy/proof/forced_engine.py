"""The teacher-forced graph as an engine, for runtimes that take plans only.

An engine has fused its layers beyond recognition, and none of its tensors can be watched. So a second one is built by
the same builder from the graph cut open at its quantizers (`teacher_forcing`), where each layer's codes are an output:
the same convolutions on int8, told apart. It is built for one image size, which settles the sizes of everything between
the cuts.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from odm_deploy.building.options import BuildOptions
from odm_deploy.building.throwaway import build_plan
from odm_deploy.errors import InputError
from odm_deploy.graphs.files import parse_onnx
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.graphs.shapes import infer_shapes
from odm_deploy.proof.teacher_forcing import GIVEN
from odm_deploy.runtimes.base import Runtime


def forced_engine_opener(
    runtime: Runtime, lowered: onnx.ModelProto, size: tuple[int, int], *, tf32: bool
) -> Callable[[bytes], Runtime]:
    """What opens a teacher-forced graph with the builder of an open engine; for `compare_layers`.

    Args:
        runtime: the engine under test.
        lowered: the graph it was built from.
        size: height and width of the images to compare on, in pixels.
        tf32: how the engine was built.
    """

    def open_bytes(forced: bytes) -> Runtime:
        model = parse_onnx(forced)
        fix_shapes(model, lowered, size)
        options = BuildOptions(builder=runtime.name, shapes=InputShapes.static(1, *size), tf32=tf32)
        plan = build_plan(model, options)
        return type(runtime).open_bytes(plan, label="the engine of the cut graph")

    return open_bytes


def fix_shapes(forced: onnx.ModelProto, lowered: onnx.ModelProto, size: tuple[int, int]) -> None:
    """Replace the dynamic dimensions of a teacher-forced graph's inputs, in place.

    Args:
        forced: the graph, cut open.
        lowered: the graph it was cut from, which tells what lies between the cuts.
        size: height and width of the image, in pixels.

    Raises:
        InputError: the graph computes sizes in a way that cannot be followed.
    """
    shapes = infer_shapes(lowered, InputShapes.static(1, *size))
    for value in forced.graph.input:
        shape = shapes.get(value.name.removesuffix(GIVEN))
        dims = value.type.tensor_type.shape.dim
        if shape is None or len(shape) != len(dims):
            raise InputError("cannot check this graph layer by layer", why=f"the size of {value.name} is not known")
        for dim, extent in zip(dims, shape, strict=True):
            dim.dim_value = extent
