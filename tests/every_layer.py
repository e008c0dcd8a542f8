"""Each layer of a graph by itself, on a runtime that may compute it wrongly."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from odm_deploy import quantize
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu
from tests.factories import random_images

Opener = Callable[[bytes], Runtime]


def crops(height: int, width: int) -> list[Tensor]:
    return [torch.from_numpy(random_images(height, width, seed=seed)) for seed in range(4)]


@functools.cache
def quantized_once(
    make: Callable[..., nn.Module],
    *arguments: Hashable,
    profile: str,
    bits: str = "8",
    symmetric: bool = False,
    size: tuple[int, int] = (20, 28),
    images: int = 4,
    settings: CalibrationSettings | None = None,
) -> QuantizedModel:
    """`make(*arguments)`, quantized on `crops`: once for all cases that lower or run it differently. Read-only."""
    policy = QuantizationPolicy.parse(profile, bits, symmetric=symmetric)
    given = {} if settings is None else {"settings": settings}
    return quantize(make(*arguments).eval(), policy, crops(*size)[:images], **given)


def check_every_layer(
    model: QuantizedModel, graph: ModelProto, image: NDArray[np.float32], opener: Opener = OpenVinoCpu.open_bytes
) -> None:
    layers = compare_layers(model, graph, opener, [image])
    assert layers
    assert all(layer.is_clean for layer in layers), [layer for layer in layers if not layer.is_clean]
