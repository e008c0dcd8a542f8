"""The quantizers people would use instead, each as its own documentation has it for convolutional networks on CPUs.

onnxruntime's runs here. NNCF wants versions of its own, so it runs in an environment of its own:

    python -m venv nncf && nncf/bin/pip install nncf openvino onnx
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from odm_deploy.errors import MissingError, OdmError

Images = Sequence[NDArray[np.float32]]
"""Calibration images, float32 [1, 3, H, W] in 0..255."""

_NNCF_CHILD = Path(__file__).parent / "nncf_child.py"


def onnxruntime_static(network: ModelProto, images: Images, result: Path, *, seven_bits: bool = False) -> None:
    """Onnxruntime's static quantizer: preprocessed graph, QDQ, uint8 activations, int8 weights per channel, min-max.

    Args:
        network: the float network; everything of it is quantized, as its documentation has it.
        images: what it calibrates on.
        result: the ONNX file to write.
        seven_bits: of weights: its `reduce_range`, for CPUs without VNNI.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(images)

        def get_next(self) -> Any:
            image = next(self._left, None)
            return None if image is None else {network.graph.input[0].name: image}

    with tempfile.TemporaryDirectory(prefix="onnxruntime_static_") as folder:
        plain, prepared = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
        plain.write_bytes(network.SerializeToString())
        # Symbolic shapes need the batch, height and width that vary here; the other steps are what it asks for.
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            result,
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=seven_bits,
        )


def nncf(
    python: Path, network: ModelProto, images: Images, result: Path, *, preset: str, seven_bits: bool = False
) -> None:
    """NNCF's post-training quantization of an OpenVINO model, with its defaults but for the last two.

    Args:
        python: the interpreter of the environment it is installed in.
        network: the float network.
        images: what it calibrates on; all of them.
        result: the .xml file to write.
        preset: `performance` (symmetric grids, its default) or `mixed` (asymmetric activations).
        seven_bits: of all layers' weights, for CPUs without VNNI: its `overflow_fix`. By default the first layer's.

    Raises:
        MissingError: NNCF is not installed there.
        OdmError: it failed.
    """
    plain, inputs = result.parent / "float.onnx", result.parent / "images.npz"
    plain.write_bytes(network.SerializeToString())
    np.savez(inputs, *images)
    fix = "enable" if seven_bits else "first_layer_only"
    command = [str(python), str(_NNCF_CHILD), str(plain), str(inputs), preset, fix, str(result)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise MissingError(f"no NNCF at {python}", why=str(error.strerror)) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        if "No module named" in last:
            raise MissingError("no NNCF", why=last, fix=f"{python} -m pip install nncf openvino onnx")
        raise OdmError("NNCF failed", why=last)
