"""Runs in NNCF's environment: FLOAT.onnx IMAGES.npz PRESET RESULT.xml. Nothing of this project is imported here."""

import sys

import nncf
import numpy as np
import openvino

plain, inputs, preset, result = sys.argv[1:]
images = list(np.load(inputs).values())
model = openvino.Core().read_model(plain)
quantized = nncf.quantize(model, nncf.Dataset(images), preset=nncf.QuantizationPreset(preset), subset_size=len(images))
openvino.save_model(quantized, result, compress_to_fp16=False)
