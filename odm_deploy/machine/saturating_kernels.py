"""Whether OpenVINO's integer kernels saturate on this CPU.

x86 CPUs without VNNI instructions (AMD before Zen 4, most of Intel's before Ice Lake and Alder Lake) add pairs of 8-bit
products in 16 bits. Where the CPU does not say that it has them, or the environment sets limits, OpenVINO is asked by a
layer that would come out wrong.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache

import numpy as np

from odm_deploy.machine.host import adds_in_16_bits
from odm_deploy.machine.openvino_package import import_openvino

_LIMITS = {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"}
"""Variables by which oneDNN, and OpenVINO with it, is kept from instructions that the CPU has."""
_OPERATORS = ("openvino.opset13", "openvino.runtime.opset13")
"""The module of OpenVINO's operators, in its releases of today and in older ones."""
_CHANNELS, _SIDE = 32, 4
_WEIGHT = 127


@cache
def openvino_saturates() -> bool:
    """Whether OpenVINO's int8 convolutions saturate on this CPU. Takes a small fraction of a second, once a process."""
    if adds_in_16_bits() is False and not _LIMITS & set(os.environ):
        return False
    openvino = import_openvino()
    operators = importlib.import_module(next(name for name in _OPERATORS if importlib.util.find_spec(name)))
    x = operators.parameter([1, _CHANNELS, _SIDE, _SIDE], openvino.Type.f32)
    ends = [np.float32(end) for end in (0.0, 255.0)]
    levels = operators.fake_quantize(x, *ends, *ends, levels=256)
    codes = operators.constant(np.full([_CHANNELS, _CHANNELS, 1, 1], _WEIGHT, np.int8))
    weights = operators.multiply(operators.convert(codes, "f32"), np.float32(1.0))
    one, none = [1, 1], [0, 0]
    product = operators.convolution(levels, weights, one, none, none, one)
    model = openvino.Model([product], [x])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(np.full([1, _CHANNELS, _SIDE, _SIDE], 255.0, np.float32))[0]
    return bool((found != 255.0 * _WEIGHT * _CHANNELS).any())
