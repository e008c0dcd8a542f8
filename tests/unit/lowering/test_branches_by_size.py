"""Code that decides by the image's size, far from the sizes it is traced and always compared at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy import quantize
from odm_deploy.errors import InputError
from odm_deploy.lowering.lower import lower
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from tests.factories import OPENERS, random_images

ALL = LayerBits(8, 8)
THROUGHOUT = QuantizationPolicy(body=ALL, head=ALL, body_end=ALL, tail=ALL)


class BySize(nn.Module):
    """Its features go through a function that may look at their size."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.function = function
        self.head, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.last(self.function(self.head(x))), 2)


def local_mean(x: Tensor, window: int = 96) -> Tensor:
    """Over the image, or over windows where it is larger than one."""
    height, width = x.shape[2:]
    if height <= window and width <= window:
        return x + x.mean((2, 3), keepdim=True)
    return x + F.avg_pool2d(x, 3, 1, 1)


ANOTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "height": lambda x: -x if x.shape[2] > 100 else x,
    "pixels": lambda x: -x if x.shape[2] * x.shape[3] > 200 * 200 else x,
    "shape": lambda x: -x if x.shape[3] > 4 * x.shape[2] else x,
    "parts": lambda x: x * float(max(1, x.shape[2] // 64)),
    "small": lambda x: -x if x.shape[3] < 30 else x,
    "windows": local_mean,
    "windows of multiples": lambda x: local_mean(F.pad(x, (0, -x.shape[3] % 16, 0, -x.shape[2] % 16))),
    "large, of 32 only": lambda x: -x.unflatten(2, (-1, 1)).flatten(2, 3) if x.shape[2] > 128 else x,
}


def quantized(function: Callable[[Tensor], Tensor]) -> QuantizedModel:
    return quantize(BySize(function), THROUGHOUT, [torch.from_numpy(random_images(48, 64, seed=3))])


@pytest.mark.parametrize("kind", ANOTHER)
def test_code_that_is_another_for_large_small_or_narrow_images_is_not_exported(kind: str) -> None:
    with pytest.raises(InputError, match="fixes sizes while it is traced"):
        lower(quantized(ANOTHER[kind]))


def test_sizes_the_code_does_not_take_are_passed_over_for_some_it_takes() -> None:
    def picky(x: Tensor) -> Tensor:
        if x.shape[2] % 32 and x.shape[2] > 100:
            raise ValueError("multiples of 32")
        return -x if x.shape[2] > 100 else x

    with pytest.raises(InputError, match="fixes sizes while it is traced"):
        lower(quantized(picky))


SAME: dict[str, Callable[[Tensor], Tensor]] = {
    "padded if need be": lambda x: (F.pad(x, (0, -x.shape[3] % 8)) if x.shape[3] % 8 else x)[..., : x.shape[3]],
    "in parts": lambda x: torch.cat(x.split(64, 2), 2) if x.shape[2] > 100 else x,
    "limited": lambda x: x * (min(x.shape[2], 100) / 50),
}


@pytest.mark.parametrize("kind", SAME)
def test_code_that_computes_the_same_on_both_sides_of_a_decision_is_exported(kind: str) -> None:
    model = quantized(SAME[kind])
    image = random_images(136, 40, seed=4)
    with OPENERS["onnxruntime"](lower(model).SerializeToString()) as runtime:
        assert np.quantile(np.abs(runtime.upscale(image) - model(torch.from_numpy(image)).numpy()), 0.95) < 1
