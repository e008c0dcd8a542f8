"""The sizes of images that a network takes where it does not take every one: both sides multiples of a number.

Networks in torch ask, too, so onnx is imported only for graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from odm_deploy.errors import InputError, MissingError

if TYPE_CHECKING:
    from onnx import ModelProto

_DIVISORS = (2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 64)
"""What networks may want the sides of images to be multiples of."""
_SMALLEST_SIDE_PX = 48
_ODD_PX = (53, 59)


def divisor_of_sides(takes: Callable[[int, int], bool]) -> int:
    """The smallest number whose multiples a network takes as sides of images; 1: it takes all; 0: none that is known.

    Args:
        takes: whether the network runs on an image of this height and width.
    """
    if takes(*_ODD_PX):
        return 1
    for divisor in _DIVISORS:
        # Two multiples in a row have no larger divisor in common.
        times = max(-(-_SMALLEST_SIDE_PX // divisor), 3)
        if takes(divisor * times, divisor * (times + 1)):
            return divisor
    return 0


def divisor_of_graph(model: ModelProto) -> int:
    """`divisor_of_sides` of a graph with one image for input, by ONNX Runtime; 0 also where that cannot tell."""
    from onnx import helper

    from odm_deploy.graphs.plain_run import PlainRun

    filled = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in filled]
    tensor = inputs[0].type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim]
    if len(inputs) != 1 or len(dims) != 4:
        return 0
    rows = 1 if dims[3] == 3 and dims[1] != 3 else 2
    if dims[rows] or dims[rows + 1]:
        return 0
    try:
        run = PlainRun(model, [value.name for value in model.graph.output])
    except (InputError, MissingError):
        return 0

    def takes(height: int, width: int) -> bool:
        shape = [size or 1 for size in dims]
        shape[rows : rows + 2] = height, width
        try:
            run({inputs[0].name: np.zeros(shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type))})
        except InputError:
            return False
        return True

    return divisor_of_sides(takes)


def takes_multiples(divisor: int, height: int, width: int) -> str:
    """Of which sizes a network takes images, and one of them that is near to one that it does not take."""
    near = f"{-(-width // divisor) * divisor}x{-(-height // divisor) * divisor}"
    return f"it runs where both sides are multiples of {divisor}: bring the image to such a size, {near} say"
