"""One arithmetic in three places: numpy's Grid, torch's marker operator, and ONNX's QuantizeLinear."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from odm_deploy.grid import Grid
from odm_deploy.quantization.fake_quant import dequantize_weight, fake_quantize, grid_codes
from tests.grid_strategies import free_grids, grids, ordinary_grids, unhurried, values_near


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}"))


@unhurried
@given(grids, st.data())
def test_agrees_with_numpy_to_the_bit(grid, data):
    x = data.draw(values_near(grid))
    assert_same_bits(fake_quantize(torch.from_numpy(x), grid).numpy(), grid.fake_quantize(x))
    assert_same_bits(grid_codes(torch.from_numpy(x), grid).numpy(), grid.quantize(x))


@unhurried
@given(grids, st.data())
def test_agrees_with_numpy_in_float64(grid, data):
    x = data.draw(values_near(grid)).astype(np.float64) * (1 + 1e-9)
    assert_same_bits(fake_quantize(torch.from_numpy(x), grid).numpy(), grid.fake_quantize(x))


@unhurried
@given(grids, st.data())
def test_autocast_changes_nothing(grid, data):
    x = data.draw(values_near(grid))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        levels = fake_quantize(torch.from_numpy(x), grid)
    assert_same_bits(levels.numpy(), grid.fake_quantize(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32(dtype):
    grid = Grid(0.3, 3, 4)
    x = torch.linspace(-3, 3, 501).to(dtype)
    levels = fake_quantize(x, grid)
    assert levels.dtype == torch.float32
    assert_same_bits(levels.numpy(), grid.fake_quantize(x.float().numpy()))


@unhurried
@given(ordinary_grids(), st.data())
def test_agrees_with_onnx_in_the_integer_form_of_uint8_runtimes(grid, data):
    """QuantizeLinear(uint8, zero point), an integer Clip to the narrower codes, DequantizeLinear."""
    # ONNX's reference converts the quotient to int32 before it saturates, so larger ones wrap around there.
    x = np.clip(data.draw(values_near(grid)), -1e9 * grid.scale, 1e9 * grid.scale, dtype=np.float32)
    scale, zero = np.float32(grid.scale), np.uint8(grid.zero_point)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["wide"]),
        helper.make_node("Clip", ["wide", "", "last"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    levels = run_onnx(nodes, x, scale=scale, zero=zero, last=np.uint8(grid.code_max))
    assert_same_bits(levels, grid.fake_quantize(x))


@unhurried
@given(ordinary_grids(), st.data())
def test_agrees_with_onnx_in_the_bounded_form_of_zero_point_free_runtimes(grid, data):
    """Max and Min on the real values, then QuantizeLinear(int8, zero point 0): up to 7 bits the codes fit int8."""
    if grid.bits == 8:
        grid = Grid(grid.scale, grid.zero_point // 2, 7)
    x = data.draw(values_near(grid))
    nodes = [
        helper.make_node("Max", ["x", "lower"], ["above"]),
        helper.make_node("Min", ["above", "upper"], ["inside"]),
        helper.make_node("QuantizeLinear", ["inside", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    bounds = {"lower": np.float32(grid.lower), "upper": np.float32(grid.upper)}
    levels = run_onnx(nodes, x, scale=np.float32(grid.scale), zero=np.int8(0), **bounds)
    assert_same_bits(levels, grid.fake_quantize(x))


@unhurried
@given(free_grids(), st.data())
def test_a_free_grid_agrees_with_onnx_in_its_shifted_form(grid, data):
    """Sub center, bounds, QuantizeLinear(int8, zero point 0), DequantizeLinear, Add center."""
    x = data.draw(values_near(grid))
    half, scale = grid.code_half, np.float32(grid.scale)
    nodes = [
        helper.make_node("Sub", ["x", "center"], ["shifted"]),
        helper.make_node("Max", ["shifted", "lower"], ["above"]),
        helper.make_node("Min", ["above", "upper"], ["inside"]),
        helper.make_node("QuantizeLinear", ["inside", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["around_zero"]),
        helper.make_node("Add", ["around_zero", "center"], ["y"]),
    ]
    bounds = {"lower": -half * scale, "upper": (half - 1) * scale}
    levels = run_onnx(nodes, x, scale=scale, zero=np.int8(0), center=np.float32(grid.center), **bounds)
    assert_same_bits(levels, grid.fake_quantize(x))


def run_onnx(nodes: list[onnx.NodeProto], x: np.ndarray, **constants: np.generic) -> np.ndarray:
    """`y` of a graph of `nodes` reading `x` float32 [n], evaluated by the reference implementation of ONNX."""
    graph = helper.make_graph(
        nodes,
        "grid",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.checker.check_model(model)
    # The quotient of a huge value may overflow to infinity, which then saturates: that is the point of such values.
    with np.errstate(over="ignore"):
        (y,) = ReferenceEvaluator(model).run(None, {"x": x})
    return y


@pytest.mark.parametrize("scale", [torch.tensor([0.5, 2.0]), torch.tensor([0.25])])
def test_weights_are_codes_times_scale(scale):
    codes = torch.tensor([[1, -2, 3], [-128, 0, 127]], dtype=torch.int8)
    weight = dequantize_weight(codes, scale)
    assert torch.equal(weight, codes.float() * scale[:, None])
    assert dequantize_weight(codes, scale.double()).dtype == torch.float64


@pytest.mark.parametrize("grid", [Grid(0.1, 3, 4), Grid.free(-0.7, 2.1, 4)])
def test_stays_one_named_node_through_torch_export(grid):
    class Quantizer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return fake_quantize(x, grid, "body.0") + 1

    x = torch.linspace(-2, 2, 11)
    program = torch.export.export(Quantizer(), (x,))
    (node,) = [n for n in program.graph.nodes if "fake_quantize" in str(n.target)]
    assert list(node.args[1:]) == [grid.scale, grid.zero_point, grid.bits, grid.center, "body.0"]
    assert torch.equal(program.module()(x), Quantizer()(x))
