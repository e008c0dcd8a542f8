"""Runs in NNCF's environment: FLOAT.onnx IMAGES.npz PRESET OVERFLOW_FIX RESULT.xml.

Nothing of this project is imported here.
"""

import sys

import nncf
import numpy as np
import openvino
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

plain, inputs, preset, overflow_fix, result = sys.argv[1:]
images = list(np.load(inputs).values())
model = openvino.Core().read_model(plain)
quantized = nncf.quantize(
    model,
    nncf.Dataset(images),
    preset=nncf.QuantizationPreset(preset),
    subset_size=len(images),
    advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix(overflow_fix)),
)
openvino.save_model(quantized, result, compress_to_fp16=False)
