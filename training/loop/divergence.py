"""Saying where a training run broke, rather than that it did."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError
from training.model import TrainableModel


@torch.no_grad()
def first_broken_layer(model: TrainableModel, low: Tensor) -> str:
    """A clause naming the first layer whose output is NaN or infinite when `low` passes through again."""
    broken: list[str] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                broken.append(name)

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in model.network.named_modules() if name]
    try:
        model(low)
    finally:
        for handle in handles:
            handle.remove()
    return f"the first NaN or infinity leaves {broken[0]}" if broken else "every layer's output is finite"


def check_finite(gradients: Mapping[str, Tensor], iteration: int) -> None:
    """Refuse to step with broken gradients.

    Raises:
        InputError: naming the first parameter whose gradient is NaN or infinite.
    """
    # A norm is NaN or infinite exactly if something in it is (or overflows, which is no better).
    if bool(torch.isfinite(torch.nn.utils.get_total_norm(list(gradients.values())))):
        return
    name = next((name for name, value in gradients.items() if not bool(torch.isfinite(value).all())), "all together")
    raise InputError(
        f"training diverged at iteration {iteration}",
        why=f"the gradient of {name} is not finite",
        fix="lower the learning rates and use another --out",
    )
