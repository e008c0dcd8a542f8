"""A tiny x2 super-resolution network as ONNX: in float, and in the forms quantization gives it, over the same weights.

    image - mean -> head -> [Q DQ] -> body -> ReLU -> + head -> [Q DQ] -> tail -> DepthToSpace -> sr

Every form dequantizes to the float form's weights, so that without quantizers they all compute the same function.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Form = Literal["float", "bounded", "shifted", "unsigned"]
FORMS: tuple[Form, ...] = ("bounded", "shifted", "unsigned")

WIDTH = 8
SCALE = 2
_STEP = np.float32(1.5)


class _Net:
    def __init__(self, form: Form) -> None:
        self.form = form
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.codes: list[str] = []
        self._rng = np.random.default_rng(11)

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{name}/{kind}", **attributes))
        return name

    def conv(self, name: str, x: str, c_in: int, c_out: int, *, quantized: bool = True) -> str:
        codes = self._rng.integers(-7, 8, (c_out, c_in, 3, 3)).astype(np.int8)
        scales = self._rng.uniform(0.005, 0.02, c_out).astype(np.float32)
        weight = codes * scales.reshape(-1, 1, 1, 1)
        bias = self._rng.normal(size=c_out).astype(np.float32)
        padding = 1
        if not quantized or self.form == "float":
            w = self.constant(f"{name}.weight", weight.astype(np.float32))
        else:
            x, center = self._quantize(name, x)
            if self.form == "shifted":
                padding = 0
                bias = (bias + center * weight.astype(np.float64).sum((1, 2, 3))).astype(np.float32)
            parts = [
                self.constant(f"{name}.codes", codes),
                self.constant(f"{name}.scales", scales),
                self.constant(f"{name}.zeros", np.zeros(c_out, np.int8)),
            ]
            w = self.op("DequantizeLinear", parts, f"{name}.weight", axis=0)
        return self.op("Conv", [x, w, self.constant(f"{name}.bias", bias)], name, pads=[padding] * 4)

    def _quantize(self, name: str, x: str) -> tuple[str, float]:
        """Q and DQ in front of a layer, and the center its input is shifted by."""
        center, zero = 0.0, np.int8(0)
        if self.form == "shifted":
            center = float(_STEP) * 40
            x = self.op("Pad", [x, self.constant(f"{name}.pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))], f"{name}.padded")
            x = self.op("Sub", [x, self.constant(f"{name}.center", np.float32(center))], f"{name}.centered")
        elif self.form == "bounded":
            for kind, steps in (("Max", -63), ("Min", 64)):
                x = self.op(kind, [x, self.constant(f"{name}.{kind}", np.float32(steps * _STEP))], f"{name}.{kind}ed")
        else:
            zero = np.uint8(100)
        parts = [self.constant(f"{name}.step", _STEP), self.constant(f"{name}.zero", zero)]
        q = self.op("QuantizeLinear", [x, *parts], f"{name}.codes_x")
        self.codes.append(q)
        if self.form == "unsigned":
            bounds = [self.constant(f"{name}.low", np.uint8(10)), self.constant(f"{name}.high", np.uint8(240))]
            q = self.op("Clip", [q, *bounds], f"{name}.clipped")
        return self.op("DequantizeLinear", [q, *parts], f"{name}.levels"), center


def sr_model(form: Form = "bounded", *, taps: bool = False, size: tuple[int, int] | None = None) -> onnx.ModelProto:
    """The network: input `image` float32 [n, 3, h, w], output `sr` float32 [n, 3, 2h, 2w].

    Args:
        form: `float`, or how activations are quantized: `bounded` and `shifted` (TensorRT), `unsigned` (ONNX Runtime).
        taps: let the codes of every quantizer be outputs, too.
        size: fix the input's height and width.
    """
    net = _Net(form)
    mean = net.constant("mean", np.array([114.4, 111.5, 103.0], np.float32).reshape(1, 3, 1, 1))
    head = net.conv("head", net.op("Sub", ["image", mean], "centred"), 3, WIDTH, quantized=False)
    body = net.op("Relu", [net.conv("body", head, WIDTH, WIDTH)], "body_relu")
    total = net.op("Add", [body, head], "sum")
    net.op("DepthToSpace", [net.conv("tail", total, WIDTH, 3 * SCALE**2)], "sr", blocksize=SCALE)
    h, w = size or ("h", "w")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, h, w])
    outputs = [helper.make_tensor_value_info("sr", TensorProto.FLOAT, ["n", 3, None, None])]
    if taps:
        kind = TensorProto.UINT8 if form == "unsigned" else TensorProto.INT8
        outputs += [helper.make_tensor_value_info(name, kind, ["n", WIDTH, None, None]) for name in net.codes]
    graph = helper.make_graph(net.nodes, "tiny", [image], outputs, net.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def random_images(n: int = 1, h: int = 12, w: int = 10, seed: int = 0) -> np.ndarray:
    """float32 [n, 3, h, w] in 0..255."""
    return np.random.default_rng(seed).integers(0, 256, (n, 3, h, w)).astype(np.float32)
