"""Faster training steps: compiled quantizers, and TF32 on GPUs.

Fake quantization is a dozen element-wise operations per layer, each of which reads and writes the whole feature;
compiled they become one loop. Convolutions are left to the libraries that already run them well, and the two backward
passes of a step stay separate, because a compiled whole would compute every gradient in both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch._functorch.config
from torch import Tensor

from odm_deploy.errors import MissingError
from odm_deploy.quantization.straight_through.range import range_quantize
from training.model import TrainableModel
from training.recipe import RunSection

# Layers differ in shape, and SwinIR has many; beyond the limit torch goes back to uncompiled code without a word.
_MOST_VARIANTS = 64

# What has Inductor round a division to the nearest number on a GPU: torch since 2.11, and 2.10 (its spelling).
_DIVISION_ROUNDING = ("eager_numerics.division_rounding", "emulate_divison_rounding")
# What keeps Triton from contracting a product and a sum into one operation that rounds once.
_NO_CONTRACTION = "emulate_precision_casts"


def check_device(device: str) -> None:
    """Refuse to start on a GPU that is not there.

    Raises:
        MissingError: no NVIDIA GPU that this torch can use.
    """
    if device == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda is not None
        raise MissingError(
            "cannot train on a GPU",
            why="torch finds no NVIDIA GPU" if built else f"torch {torch.__version__} is built without CUDA",
            fix="leave out --gpu or run.device=cuda" if built else "install torch with CUDA, or leave out --gpu",
        )


def accelerate(model: TrainableModel, settings: RunSection) -> str:
    """Set this process up to train `model` as fast as `settings` allow.

    Returns:
        What is not exactly as without, as a line for the user; empty: everything is.

    Raises:
        MissingError: `run.compile`, and nothing here can compile.
    """
    on_gpu = settings.device == "cuda"
    if on_gpu:
        use_tf32(settings.tf32)
        # Batches have one size: the fastest convolution algorithms are worth a search.
        torch.backends.cudnn.benchmark = True
    if not settings.compile:
        return ""
    same_codes = compile_quantizers(model)
    if same_codes or not on_gpu:
        return ""
    return (
        f"note: torch {torch.__version__} cannot compile divisions that round to the nearest on a GPU (2.10 can): "
        "compiled quantizers may put a value between two levels on the other one"
    )


def compile_quantizers(model: TrainableModel) -> bool:
    """Compile every quantizer of `model` in place; it happens in the first step.

    On a CPU forward values keep their bits. On a GPU Triton's own division is off by up to two units in the last
    place, which is another code where a value lies between two levels; Inductor's option for the division that eager
    kernels use is switched on where this torch has it. Sums over a feature, the gradients of ranges, are added up in
    another order in any case.

    Returns:
        Whether this torch has that option.

    Raises:
        MissingError: nothing here can compile.
    """
    from torch._inductor import config as inductor

    # Before the first compilation: the code that it caches depends on it.
    rounds = round_as_eager_kernels(inductor)
    _probe(next(iter(model.parameters().values())).device)
    # The reconstruction and the auxiliary loss both pass backward through one forward, which must not give its
    # memory away in the first.
    torch._functorch.config.donated_buffer = False
    cast("Any", torch)._dynamo.config.recompile_limit = _MOST_VARIANTS
    for layer in model.layers.values():
        for quantizer in (layer.activation, layer.weight_quantizer):
            # Training patches have one size; graphs for any size would be slower.
            quantizer.compile(dynamic=False)
    return rounds


def round_as_eager_kernels(inductor: Any) -> bool:
    """Have compiled kernels round where separate ones do, as far as `torch._inductor.config` has options for it.

    Returns:
        Whether divisions are among that.
    """
    options = [name for name in (*_DIVISION_ROUNDING, _NO_CONTRACTION) if hasattr(inductor, name)]
    for name in options:
        setattr(inductor, name, True)
    return any(name in options for name in _DIVISION_ROUNDING)


def _probe(device: torch.device) -> None:
    """Refuse a compiler that does not work here, or that changes what a quantizer's input and range learn."""
    plain = _probe_gradients(range_quantize, device)
    try:
        compiled = _probe_gradients(torch.compile(range_quantize, dynamic=False), device)
    except Exception as error:  # whatever the compiler of this platform raises
        raise MissingError(
            "cannot use run.compile = true",
            why=str(error).strip().splitlines()[0],
            fix="install a C++ compiler (on a GPU: Triton), or write run.compile = false",
        ) from None
    if not all(torch.allclose(*pair, rtol=1e-4) for pair in zip(compiled, plain, strict=True)):
        found, expected = ([round(values.sum().item(), 4) for values in each] for each in (compiled, plain))
        raise MissingError(
            "cannot use run.compile = true",
            why=f"torch {torch.__version__} compiles a quantizer to gradients that sum to {found}, not {expected}",
            fix="use another torch, or write run.compile = false",
        )


def _probe_gradients(quantize: Callable[..., Tensor], device: torch.device) -> list[Tensor]:
    """Gradients of the input and the bounds of a range, where some values lie in it and some beyond."""
    x = torch.linspace(-3.0, 5.0, 64, device=device).requires_grad_()
    bounds = [torch.tensor(bound, device=device, requires_grad=True) for bound in (-1.2, 2.3)]
    with torch.enable_grad():
        weighted = quantize(x, *bounds, 4) * torch.linspace(1.0, 2.0, 64, device=device)
        return list(torch.autograd.grad(weighted.sum(), [x, *bounds]))


@contextmanager
def exact_evaluation() -> Generator[None, None, None]:
    """Nothing is compiled and float32 is float32 within: what is measured is what will be frozen.

    Images to validate on have many sizes, too, each of which would be compiled, and convolution algorithms searched
    for.
    """
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    use_tf32(False)
    cudnn.benchmark = False
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _set_precision(*before[:2])
        cudnn.benchmark = before[2]


def bfloat16_convolutions(device: torch.device, enabled: bool) -> AbstractContextManager[object]:
    """Within it convolutions and products on `device` compute in bfloat16, if `enabled`."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else nullcontext()


def use_tf32(enabled: bool) -> None:
    """Whether convolutions and products on NVIDIA GPUs may round float32 operands to 11 significant bits.

    Products of CPUs follow the same switch: leave it alone when training on one.
    """
    _set_precision("high" if enabled else "highest", enabled)


def _set_precision(products: str, tf32_convolutions: bool) -> None:
    """Set both through the functions that every torch since 2.0 has and that keep its old and new flags alike.

    The flags `fp32_precision` of 2.9 alone leave the old ones behind, and `torch.compile` of 2.9 and 2.10, which reads
    these, then ends in an error (pytorch issue 166387).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 2.9 says at every use that the functions are to go one day
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = tf32_convolutions
