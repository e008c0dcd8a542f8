"""Faster training steps: compiled quantizers, and TF32 on GPUs.

Fake quantization is a dozen element-wise operations per layer, each of which reads and writes the whole feature;
compiled they become one loop. Convolutions are left to the libraries that already run them well, and the two backward
passes of a step stay separate, because a compiled whole would compute every gradient in both.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch._functorch.config
from torch import Tensor

from odm_deploy.errors import MissingError
from training.model import TrainableModel

# Layers differ in shape, and SwinIR has many; beyond the limit torch goes back to uncompiled code without a word.
_MOST_VARIANTS = 64

# The stubs do not know `cudnn.conv`.
_CUDNN: Any = torch.backends.cudnn


def compile_quantizers(model: TrainableModel) -> None:
    """Compile every quantizer of `model` in place; it happens in the first step.

    Forward values keep their bits. Sums over a feature, the gradients of ranges, are added up in another order.

    Raises:
        MissingError: nothing here can compile.
    """
    _probe(next(iter(model.parameters().values())).device)
    # The reconstruction and the auxiliary loss both pass backward through one forward, which must not give its
    # memory away in the first.
    torch._functorch.config.donated_buffer = False
    cast("Any", torch)._dynamo.config.recompile_limit = _MOST_VARIANTS
    for layer in model.layers.values():
        for quantizer in (layer.activation, layer.weight_quantizer):
            # Training patches have one size; graphs for any size would be slower.
            quantizer.compile(dynamic=False)


def _probe(device: torch.device) -> None:
    def double(x: Tensor) -> Tensor:
        return x * 2

    try:
        torch.compile(double)(torch.ones(4, device=device))
    except Exception as error:  # whatever the compiler of this platform raises
        raise MissingError(
            "cannot use run.compile = true",
            why=str(error).strip().splitlines()[0],
            fix="install a C++ compiler (on a GPU: Triton), or write run.compile = false",
        ) from None


@contextmanager
def exact_evaluation() -> Generator[None, None, None]:
    """Nothing is compiled and float32 is float32 within: what is measured is what will be frozen.

    Images to validate on have many sizes, too, each of which would be compiled for.
    """
    before = _CUDNN.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    use_tf32(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _CUDNN.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def bfloat16_convolutions(device: torch.device, enabled: bool) -> AbstractContextManager[object]:
    """Within it convolutions and products on `device` compute in bfloat16, if `enabled`."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else nullcontext()


def use_tf32(enabled: bool) -> None:
    """Whether convolutions and products on NVIDIA GPUs may round float32 operands to 11 significant bits."""
    precision = "tf32" if enabled else "ieee"
    _CUDNN.conv.fp32_precision = precision
    torch.backends.cuda.matmul.fp32_precision = precision
