"""Small QDQ graphs: legal ones, and one for every trap that lint knows, with what the real builder does to it.

Every graph has one image-like input `x` (float32 [N, 16, H, W]) and a layer named `layer` that is the one in question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 16


class Builder:
    """Collects nodes and initializers; every method returns the name of the tensor it makes."""

    def __init__(self, opset: int = 20) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.input_type = TensorProto.FLOAT
        self.batch: int | str = "N"
        self._rng = np.random.default_rng(7)

    def constant(self, name: str, value: object, kind: int | None = None) -> str:
        """An initializer; `kind` forces an ONNX type that numpy does not have."""
        array = np.asarray(value)
        if kind is None:
            self.initializers.append(numpy_helper.from_array(array, name))
        else:
            self.initializers.append(helper.make_tensor(name, kind, array.shape, array.reshape(-1).tolist()))
        return name

    def op(self, op_type: str, inputs: list[str], name: str, **attributes: object) -> str:
        """A node named like its output."""
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def qdq(self, x: str, name: str, scale: object = 0.5, zero_point: object = np.int8(0), **attributes: object) -> str:
        """`x` -> Q -> DQ, nodes `name_q` and `name_dq`. `scale` is float32 unless it is an array."""
        s = self.constant(f"{name}_s", scale if isinstance(scale, np.ndarray) else np.float32(scale))
        parameters = [s] if zero_point is None else [s, self.constant(f"{name}_z", zero_point)]
        q = self.op("QuantizeLinear", [x, *parameters], f"{name}_q", **attributes)
        return self.op("DequantizeLinear", [q, *parameters], f"{name}_dq", **attributes)

    def codes(self, *shape: int, low: int = -127, high: int = 127) -> np.ndarray:
        """Random integer codes."""
        return self._rng.integers(low, high + 1, shape)

    def weights(
        self,
        shape: tuple[int, ...] = (CHANNELS, CHANNELS, 3, 3),
        *,
        axis: int = 0,
        kind: int = TensorProto.INT8,
        scale: object = None,
        zero_point: int = 0,
        bits: int = 8,
    ) -> str:
        """Quantized weights with a scale each along `axis`, node `weight_dq`."""
        signed = kind not in (TensorProto.UINT8, TensorProto.UINT4, TensorProto.UINT16)
        top = 2 ** (bits - 1) - 1
        codes = self.codes(*shape, low=-top if signed else 0, high=top)
        self.constant("weight_q", codes, kind)
        size = shape[axis]
        scales = self.constant("weight_s", np.full(size, 0.01, np.float32) if scale is None else scale)
        zeros = self.constant("weight_z", np.full(size, zero_point), kind)
        return self.op("DequantizeLinear", ["weight_q", scales, zeros], "weight_dq", axis=axis)

    def float_weights(self) -> str:
        """Unquantized convolution weights."""
        return self.constant("weight", self._rng.normal(size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32))

    def conv(self, x: str, weights: str, bias: str | None = None) -> str:
        """The convolution in question."""
        return self.op("Conv", [x, weights, *([bias] if bias else [])], "layer", pads=[1, 1, 1, 1])

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The finished model."""
        image = helper.make_tensor_value_info("x", self.input_type, [self.batch, CHANNELS, "H", "W"])
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "graph", [image], results, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)


@dataclass(frozen=True)
class Trap:
    """A graph that breaks a rule."""

    rule: str
    node: str
    """The node the finding names."""
    fate: str
    """What TensorRT-RTX does: `refused`, `crashed`, `float`, `int8` where the trap shows only in the values, or
    `unknown` where nobody can tell."""
    build: Callable[[], onnx.ModelProto]


TRAPS: dict[str, Trap] = {}
LEGAL: dict[str, Callable[[], onnx.ModelProto]] = {}


def _trap(rule: str, node: str, fate: str, label: str, fill: Callable[[Builder], str], opset: int = 20) -> None:
    TRAPS[label] = Trap(rule, node, fate, lambda: _finish(fill, opset))


def _legal(label: str, fill: Callable[[Builder], str], opset: int = 20) -> None:
    LEGAL[label] = lambda: _finish(fill, opset)


def _finish(fill: Callable[[Builder], str], opset: int) -> onnx.ModelProto:
    builder = Builder(opset)
    return builder.model(fill(builder))


def _conv_with(activation: Callable[[Builder], str]) -> Callable[[Builder], str]:
    return lambda b: b.conv(activation(b), b.weights())


def _between(op: str, constants: dict[str, object] | None = None, **attributes: object) -> Callable[[Builder], str]:
    """DQ -> op -> layer; constants are further inputs of the op, an empty name skips one."""

    def fill(b: Builder) -> str:
        extra = ["" if value is None else b.constant(name, value) for name, value in (constants or {}).items()]
        return b.conv(b.op(op, [b.qdq("x", "a"), *extra], "between", **attributes), b.weights())

    return fill


def _concat(scales: tuple[float, float], *, quantize_both: bool = True) -> Callable[[Builder], str]:
    def fill(b: Builder) -> str:
        second = b.op("Neg", ["x"], "negated")
        parts = [b.qdq("x", "a", scales[0]), b.qdq(second, "b", scales[1]) if quantize_both else second]
        return b.conv(b.op("Concat", parts, "concat", axis=1), b.weights((CHANNELS, 2 * CHANNELS, 3, 3)))

    return fill


def _matmul(
    axis: int, *, transpose: bool = False, op: str = "MatMul", **attributes: object
) -> Callable[[Builder], str]:
    """A product with 16 x 16 weights whose scales lie along `axis` of what is stored."""

    def fill(b: Builder) -> str:
        rows = b.op("Transpose", ["x"], "rows", perm=[0, 2, 3, 1])
        if op == "Gemm":
            rows = b.op("Reshape", [rows, b.constant("flat", np.array([-1, CHANNELS]))], "flattened")
        weights = b.weights((CHANNELS, CHANNELS), axis=axis)
        if transpose:
            weights = b.op("Transpose", [weights], "transposed", perm=[1, 0])
        return b.op(op, [b.qdq(rows, "a"), weights], "layer", **attributes)

    return fill


def _attention(*, quantize_both: bool) -> Callable[[Builder], str]:
    def fill(b: Builder) -> str:
        keys = b.op("Reshape", ["x", b.constant("shape", np.array([0, CHANNELS, -1]))], "keys")
        queries = b.qdq(b.op("Transpose", [keys], "queries", perm=[0, 2, 1]), "a")
        return b.op("MatMul", [queries, b.qdq(keys, "b") if quantize_both else keys], "layer")

    return fill


def _weight_type(kind: str, bits: int = 4) -> Callable[[Builder], str]:
    return lambda b: b.conv(b.qdq("x", "a"), b.weights(kind=TensorProto.DataType.Value(kind), bits=bits))


def _activation_type(kind: str) -> Callable[[Builder], str]:
    def fill(b: Builder) -> str:
        parameters = [b.constant("a_s", np.float32(0.5)), b.constant("a_z", 0, TensorProto.DataType.Value(kind))]
        q = b.op("QuantizeLinear", ["x", *parameters], "a_q")
        return b.conv(b.op("DequantizeLinear", [q, *parameters], "a_dq"), b.weights())

    return fill


def _bounded(op_pairs: tuple[tuple[str, float], ...], scale: float) -> Callable[[Builder], str]:
    def fill(b: Builder) -> str:
        x = "x"
        for op, limit in op_pairs:
            x = b.op(op, [x, b.constant(f"{op}_limit", np.float32(limit))], op.lower())
        return b.conv(b.qdq(x, "a", scale), b.weights())

    return fill


def _clip_before_q(b: Builder) -> str:
    bounds = [b.constant("low", np.float32(-3)), b.constant("high", np.float32(3))]
    return b.conv(b.qdq(b.op("Clip", ["x", *bounds], "clip"), "a"), b.weights())


def _integer_clip(b: Builder) -> str:
    parameters = [b.constant("a_s", np.float32(0.5)), b.constant("a_z", np.int8(0))]
    q = b.op("QuantizeLinear", ["x", *parameters], "a_q")
    clip = b.op("Clip", [q, b.constant("low", np.int8(-8)), b.constant("high", np.int8(7))], "clip")
    return b.conv(b.op("DequantizeLinear", [clip, *parameters], "a_dq"), b.weights())


def _run_time_scale(b: Builder) -> str:
    parameters = [b.op("ReduceMax", ["x"], "largest", keepdims=0), b.constant("a_z", np.int8(0))]
    q = b.op("QuantizeLinear", ["x", *parameters], "a_q")
    return b.conv(b.op("DequantizeLinear", [q, *parameters], "a_dq"), b.weights())


def _int32_bias(b: Builder) -> str:
    parts = [b.constant("bias_q", np.zeros(CHANNELS, np.int32)), b.constant("bias_s", np.full(CHANNELS, 0.005, "f4"))]
    return b.conv(b.qdq("x", "a"), b.weights(), b.op("DequantizeLinear", parts, "bias_dq", axis=0))


def _qlinear_conv(b: Builder) -> str:
    s, z = b.constant("s", np.float32(0.5)), b.constant("z", np.int8(0))
    q = b.op("QuantizeLinear", ["x", s, z], "q")
    w = b.constant("w", b.codes(CHANNELS, CHANNELS, 3, 3).astype(np.int8))
    y = b.op("QLinearConv", [q, s, z, w, s, z, s, z], "layer", pads=[1, 1, 1, 1])
    return b.op("DequantizeLinear", [y, s, z], "y")


def _blocked(b: Builder) -> str:
    q = b.constant("weight_q", b.codes(CHANNELS, CHANNELS, 3, 3).astype(np.int8))
    s = b.constant("weight_s", np.full((CHANNELS, 4, 3, 3), 0.01, np.float32))
    return b.conv(b.qdq("x", "a"), b.op("DequantizeLinear", [q, s], "weight_dq", axis=1, block_size=4))


def _codes_from_outside(b: Builder) -> str:
    b.input_type = TensorProto.UINT8
    image = b.op("DequantizeLinear", ["x", b.constant("s", np.float32(1)), b.constant("z", np.uint8(0))], "image_dq")
    return b.conv(b.qdq(image, "a"), b.weights())


def _uint8_input_transposed(b: Builder) -> str:
    b.input_type = TensorProto.UINT8
    turned = b.op("Transpose", ["x"], "turn", perm=[0, 1, 3, 2])
    return b.conv(b.qdq(b.op("Cast", [turned], "cast", to=TensorProto.FLOAT), "a"), b.weights())


def _uint8_output_transposed(b: Builder) -> str:
    image = b.op("Cast", [b.conv(b.qdq("x", "a"), b.weights())], "cast", to=TensorProto.UINT8)
    turned = b.op("Transpose", [image], "turn", perm=[0, 2, 3, 1])
    return b.op("Cast", [turned], "y", to=TensorProto.FLOAT)


def _same_name_twice(b: Builder) -> str:
    first = b.conv(b.qdq("x", "a"), b.weights())
    b.nodes.append(helper.make_node("Conv", [first, b.float_weights()], ["second"], name="layer", pads=[1, 1, 1, 1]))
    return "second"


def _float_weights_quantized_in_graph(b: Builder) -> str:
    parameters = [
        b.constant("weight_s", np.full(CHANNELS, 0.01, "f4")),
        b.constant("weight_z", np.zeros(CHANNELS, "i1")),
    ]
    q = b.op("QuantizeLinear", [b.float_weights(), *parameters], "weight_q", axis=0)
    return b.conv(b.qdq("x", "a"), b.op("DequantizeLinear", [q, *parameters], "weight_dq", axis=0))


def _computed_parameters(b: Builder) -> str:
    """Scale and zero point as exporters leave them: a division of constants, and one behind an Identity."""
    scale = b.op("Div", [b.constant("amax", np.float32(63.5)), b.constant("codes", np.float32(127))], "a_s")
    zero = b.op("Identity", [b.constant("a_z0", np.int8(0))], "a_z")
    q = b.op("QuantizeLinear", ["x", scale, zero], "a_q")
    return b.conv(b.op("DequantizeLinear", [q, scale, zero], "a_dq"), b.weights())


def _computed_zero_point(b: Builder) -> str:
    scale, zero = b.constant("a_s", np.float32(0.5)), b.op("Identity", [b.constant("a_z0", np.uint8(3))], "a_z")
    q = b.op("QuantizeLinear", ["x", scale, zero], "a_q")
    return b.conv(b.op("DequantizeLinear", [q, scale, zero], "a_dq"), b.weights())


def _weights_behind(op: str, *constants: object, axis: int = 0, **attributes: object) -> Callable[[Builder], str]:
    """An operation between DQ and the layer, on its weights."""

    def fill(b: Builder) -> str:
        extra = [b.constant(f"k{index}", value) for index, value in enumerate(constants)]
        return b.conv(b.qdq("x", "a"), b.op(op, [b.weights(axis=axis), *extra], "between", **attributes))

    return fill


def _codes_behind(op: str, **attributes: object) -> Callable[[Builder], str]:
    """An operation between stored codes and their DQ."""

    def fill(b: Builder) -> str:
        weights = b.weights()
        dequantize = b.nodes[-1]
        dequantize.input[0] = "weight_moved"
        b.nodes.insert(-1, helper.make_node(op, ["weight_q"], ["weight_moved"], name="move", **attributes))
        return b.conv(b.qdq("x", "a"), weights)

    return fill


def _weight_halves(b: Builder) -> str:
    halves: list[str] = []
    for name in ("first", "second"):
        codes = b.constant(f"{name}_q", b.codes(CHANNELS // 2, CHANNELS, 3, 3).astype(np.int8))
        halves.append(b.op("DequantizeLinear", [codes, b.constant(f"{name}_s", np.float32(0.01))], f"{name}_dq"))
    return b.conv(b.qdq("x", "a"), b.op("Concat", halves, "concat", axis=0))


def _squeeze(channels: int) -> Callable[[Builder], str]:
    """The second convolution of channel attention, which reads `channels` of a single pixel, of one image."""

    def fill(b: Builder) -> str:
        b.batch = 1
        pooled = b.op("GlobalAveragePool", ["x"], "pooled")
        ends = [b.constant(f"few{index}", np.array([value])) for index, value in enumerate((0, channels, 1))]
        squeezed = b.op("Slice", [pooled, *ends], "squeezed")
        return b.op("Conv", [b.qdq(squeezed, "a"), b.weights((CHANNELS, channels, 1, 1))], "layer")

    return fill


def _two_quantizers_of_one_name(b: Builder) -> str:
    x = b.conv(b.qdq("x", "a"), b.weights())
    parameters = [b.constant("b_s", np.float32(0.5)), b.constant("b_z", np.int8(0))]
    b.nodes.append(helper.make_node("QuantizeLinear", [x, *parameters], ["b_q"], name="a_q"))
    return b.op("DequantizeLinear", ["b_q", *parameters], "b_dq")


def _half_precision_rest(b: Builder) -> str:
    activation = b.op("Cast", [b.qdq("x", "a")], "a_half", to=TensorProto.FLOAT16)
    weights = b.op("Cast", [b.weights()], "weight_half", to=TensorProto.FLOAT16)
    return b.op("Cast", [b.conv(activation, weights)], "y", to=TensorProto.FLOAT)


def _half_precision_scale(b: Builder) -> str:
    x = b.op("Cast", ["x"], "x_half", to=TensorProto.FLOAT16)
    weights = b.op("Cast", [b.weights()], "weight_half", to=TensorProto.FLOAT16)
    y = b.conv(b.qdq(x, "a", np.array(0.5, np.float16)), weights)
    return b.op("Cast", [y], "y", to=TensorProto.FLOAT)


_PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1])
_DOUBLE = np.array([1, 1, 2, 2], np.float32)
_PER_CHANNEL = np.full(CHANNELS, 0.5, np.float32)
_DEAD = np.where(np.arange(CHANNELS) == 3, 0, 0.01).astype(np.float32)
_INFINITE = np.where(np.arange(CHANNELS) == 3, np.inf, 0.01).astype(np.float32)

_LEGAL_BETWEEN: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "identity": ("Identity", {}, {}),
    "max pool": ("MaxPool", {}, {"kernel_shape": [2, 2]}),
    "slice": ("Slice", {"s": np.array([1, 1]), "e": np.array([99, 99]), "a": np.array([2, 3])}, {}),
    "scalar Mul": ("Mul", {"k": np.float32(0.3)}, {}),
    "scalar Div": ("Div", {"k": np.float32(0.3)}, {}),
    "reflection pad": ("Pad", {"p": _PADS}, {"mode": "reflect"}),
    "negation": ("Neg", {}, {}),
}
_FLOAT_BETWEEN: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "Add": ("Add", {"k": np.float32(0.3)}, {}),
    "ReLU": ("Relu", {}, {}),
    "zero pad": ("Pad", {"p": _PADS}, {}),
    "constant pad": ("Pad", {"p": _PADS, "v": np.float32(1.5)}, {}),
    "resize": ("Resize", {"roi": None, "k": _DOUBLE}, {"mode": "nearest"}),
    "average pool": ("AveragePool", {}, {"kernel_shape": [2, 2]}),
    "per-channel Mul": ("Mul", {"k": np.linspace(0.1, 1, CHANNELS, dtype="f4").reshape(1, -1, 1, 1)}, {}),
}

_legal("plain", _conv_with(lambda b: b.qdq("x", "a")))
_legal("bounds as Max and Min", _bounded((("Max", -4), ("Min", 3.5)), 0.5))
_legal("8 bits around zero", _bounded((("Max", -64), ("Min", 63.5)), 0.5))
_legal("one weight scale", lambda b: b.conv(b.qdq("x", "a"), b.weights((16, 16, 3, 3), scale=np.full(16, 0.02, "f4"))))
_legal("weights quantized in the graph", _float_weights_quantized_in_graph)
_legal("half precision rest", _half_precision_rest)
_legal("Concat of equal scales", _concat((0.5, 0.5)))
_legal("matrix product", _matmul(1))
_legal("matrix product, transposed weights", _matmul(0, transpose=True))
_legal("Gemm transB", _matmul(0, op="Gemm", transB=1))
_legal("attention", _attention(quantize_both=True))
_legal("parameters computed from constants", _computed_parameters)
_legal("transposed convolution weights", _weights_behind("Transpose", axis=1, perm=[1, 0, 2, 3]))
_legal("weights behind Identity", _weights_behind("Identity"))
_legal("weights times one number", _weights_behind("Mul", np.float32(0.5)))
_legal("weights times one number a channel", _weights_behind("Mul", np.full((CHANNELS, 1, 1, 1), 0.5, np.float32)))
_legal("5 channels on one pixel", _squeeze(5))
for _label, (_op, _constants, _attributes) in _LEGAL_BETWEEN.items():
    _legal(f"{_label} after DQ", _between(_op, _constants, **_attributes))

_quantized = _conv_with(lambda b: b.qdq("x", "a"))
_trap("activation-zero-point", "a_q", "refused", "zero point 3", _conv_with(lambda b: b.qdq("x", "a", 0.5, np.int8(3))))
_trap("activation-zero-point", "a_q", "refused", "uint8 zero point 128",
      _conv_with(lambda b: b.qdq("x", "a", 0.5, np.uint8(128))))  # fmt: skip
_trap("activation-uint8", "a_q", "int8", "uint8 zero point 0", _conv_with(lambda b: b.qdq("x", "a", 0.5, np.uint8(0))))
_trap("activation-uint8", "a_q", "int8", "zero point left out", _conv_with(lambda b: b.qdq("x", "a", 0.5, None)))
for _kind in ("INT4", "UINT4", "INT16", "UINT16"):
    _trap("activation-type", "a_q", "refused", f"{_kind} activation", _activation_type(_kind), opset=21)
_trap("codes-from-outside", "image_dq", "refused", "DQ of a uint8 image", _codes_from_outside)
_trap("activation-per-channel", "a_q", "float", "activation scale a channel",
      _conv_with(lambda b: b.qdq("x", "a", _PER_CHANNEL, np.zeros(CHANNELS, np.int8), axis=1)))  # fmt: skip
_trap("scale-shape", "a_q", "float", "activation scale of shape [1]",
      _conv_with(lambda b: b.qdq("x", "a", np.array([0.5], np.float32))))  # fmt: skip
_trap("scale-precision", "a_q", "int8", "half precision scale", _half_precision_scale)
_trap("range-needs-zero-point", "a_q", "int8", "0 .. 255 steps on int8", _bounded((("Max", 0), ("Min", 127.5)), 0.5))
_trap("clip-before-quantize", "clip", "int8", "Clip before Q", _clip_before_q)
_trap("integer-clip", "clip", "int8", "Clip between Q and DQ", _integer_clip)
_trap("relu-half-range", "a_q", "int8", "ReLU before Q", _conv_with(lambda b: b.qdq(b.op("Relu", ["x"], "relu"), "a")))
for _kind in ("UINT8", "UINT4", "INT16", "UINT16"):
    _trap("weight-type", "weight_dq", "refused", f"{_kind} weights", _weight_type(_kind), opset=21)
_trap("bias-int32", "bias_dq", "refused", "int32 bias", _int32_bias)
_trap("weight-zero-point", "weight_dq", "refused", "weight zero point 2",
      lambda b: b.conv(b.qdq("x", "a"), b.weights(zero_point=2)))  # fmt: skip
_trap("convolution-operand-types", "layer", "refused", "int4 weights, int8 input", _weight_type("INT4"), opset=21)
_trap("weight-scale-axis", "weight_dq", "float", "convolution scales on axis 1",
      lambda b: b.conv(b.qdq("x", "a"), b.weights(axis=1)))  # fmt: skip
_trap("weight-scale-axis", "weight_dq", "float", "matrix scales along the summed axis", _matmul(0))
_trap("weight-scale-axis", "weight_dq", "float", "transposed matrix scales along the summed axis",
      _matmul(1, transpose=True))  # fmt: skip
_trap("weight-scale-axis", "weight_dq", "float", "Gemm scales along the summed axis", _matmul(1, op="Gemm", transB=1))
_trap("weight-scale-axis", "weight_dq", "float", "transposed convolution weights, scales on the wrong axis",
      _weights_behind("Transpose", perm=[1, 0, 2, 3]))  # fmt: skip
_trap("operation-after-dequantize", "between", "float", "negated weights", _weights_behind("Neg"))
_trap("weight-codes-computed", "weight_dq", "refused", "codes behind Identity", _codes_behind("Identity"))
_trap("weight-codes-computed", "weight_dq", "refused", "codes behind Transpose",
      _codes_behind("Transpose", perm=[1, 0, 2, 3]))  # fmt: skip
_trap("weight-concat", "concat", "refused", "weights in two halves", _weight_halves)
_trap("narrow-attention", "layer", "float", "4 channels on one pixel", _squeeze(4))
_trap("duplicate-quantizers", "a_q", "refused", "two quantizers with one name", _two_quantizers_of_one_name)
_trap("activation-zero-point", "a_q", "refused", "zero point 3 behind Identity", _computed_zero_point)
_trap("blocked-weights", "weight_dq", "refused", "blocked weights", _blocked, opset=21)
_trap("scale-not-positive", "a_q", "refused", "activation scale 0", _conv_with(lambda b: b.qdq("x", "a", 0.0)))
_trap("scale-not-positive", "weight_dq", "refused", "dead channel",
      lambda b: b.conv(b.qdq("x", "a"), b.weights(scale=_DEAD)))  # fmt: skip
_trap("scale-not-positive", "a_q", "refused", "activation scale NaN", _conv_with(lambda b: b.qdq("x", "a", np.nan)))
_trap("scale-out-of-range", "weight_dq", "int8", "infinite weight scale",
      lambda b: b.conv(b.qdq("x", "a"), b.weights(scale=_INFINITE)))  # fmt: skip
_trap("scale-out-of-range", "a_q", "int8", "subnormal scale", _conv_with(lambda b: b.qdq("x", "a", 1e-42)))
_trap("scale-at-run-time", "a_q", "crashed", "scale computed at run time", _run_time_scale)
_trap("half-quantized", "layer", "float", "weights only", lambda b: b.conv("x", b.weights()))
_trap("half-quantized", "layer", "float", "activations only", lambda b: b.conv(b.qdq("x", "a"), b.float_weights()))
_trap("half-quantized", "layer", "float", "one factor of two activations", _attention(quantize_both=False))
for _label, (_op, _constants, _attributes) in _FLOAT_BETWEEN.items():
    _trap(
        "operation-after-dequantize", "between", "float", f"{_label} after DQ", _between(_op, _constants, **_attributes)
    )
_trap("concat-scales", "concat", "float", "Concat of different scales", _concat((0.5, 0.25)))
_trap("concat-scales", "concat", "float", "Concat of codes and floats", _concat((0.5, 0.5), quantize_both=False))
_trap("transposed-convolution", "layer", "float", "quantized ConvTranspose",
      lambda b: b.op("ConvTranspose", [b.qdq("x", "a"), b.weights()], "layer", strides=[2, 2]))  # fmt: skip
_trap("integer-operators", "layer", "refused", "QLinearConv", _qlinear_conv)
_trap("uint8-inside", "turn", "refused", "transposed uint8 input", _uint8_input_transposed)
_trap("uint8-inside", "turn", "refused", "uint8 output behind a Transpose", _uint8_output_transposed)
_trap("opset", "", "int8", "opset 21", _quantized, opset=21)
_trap("duplicate-names", "layer", "unknown", "two layers with one name", _same_name_twice)
