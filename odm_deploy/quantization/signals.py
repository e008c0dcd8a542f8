"""Signals: tensors between layers that lie on a static grid of their own, so that integers flow from layer to layer.

A layer's input grid makes its product an integer one. What it gives out is still a float, and so are the sums of a
residual network, until the next layer's grid. Some runtimes gain nothing from that: ONNX Runtime computes a convolution
in integers only where its output is quantized, too, and a residual sum only between codes. So outputs of layers and
sums can be put on grids, each by a `SignalQuantizer` that is a part, `output`, of the module whose output it is, or of
the place of an operation (`operation_signals`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.networks.replacing import replace_modules
from odm_deploy.quantization.fake_quant import fake_quantize
from odm_deploy.quantization.operation_signals import (
    OUTPUT,
    Place,
    aside,
    drop_places,
    follow,
    has_places,
    place_of,
)


class SignalQuantizer(nn.Module):
    """Puts a tensor of any shape on a static grid; float in, float out.

    Attributes:
        name: what the signal is called: its module's dotted name, and `output`.
        grid: the static grid. Behind a rectifier it starts at zero, and then stands in front of it just as well.
    """

    def __init__(self, name: str, grid: Grid) -> None:
        super().__init__()
        self.name, self.grid = name, grid
        # As `QuantizedLayer.tap`.
        self.tap: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Levels of `x`."""
        return fake_quantize(x if self.tap is None else self.tap(x), self.grid, self.name)


def attach(network: nn.Module, name: str, quantizer: nn.Module) -> None:
    """Let the output of a module of `network` pass through `quantizer` from now on.

    Args:
        network: any network; changed.
        name: of the signal, `{module}.output` or `{operation}.output`.
        quantizer: takes and gives one tensor. Becomes a part of the module; whatever was there is replaced.

    Raises:
        InputError: no such module, or one that has a part of that name for itself.
    """
    owner, _, part = name.rpartition(".")
    modules = dict(network.named_modules())
    module = modules[owner] if owner in modules else place_of(network, owner)
    if part != OUTPUT or not owner or module is None:
        raise InputError(f"no signal {name}", why=f"it is {{module}}.{OUTPUT}", fix="name a module of the network")
    if isinstance(module, Place):
        module.add_module(OUTPUT, quantizer)
        return
    detach(module)
    if hasattr(module, OUTPUT):
        raise InputError(f"no signal {name}", why=f"{owner} has a part {OUTPUT} of its own")
    module.add_module(OUTPUT, quantizer)
    module.register_forward_hook(_through_quantizer)


def detach(module: nn.Module) -> nn.Module | None:
    """Take the quantizer off a module's output, and return it; None where there is none."""
    found = [key for key, hook in module._forward_hooks.items() if hook is _through_quantizer]  # pyright: ignore[reportPrivateUsage]
    if not found:
        return None
    for key in found:
        del module._forward_hooks[key]  # pyright: ignore[reportPrivateUsage]
    quantizer = module.get_submodule(OUTPUT)
    delattr(module, OUTPUT)
    return quantizer


def replace_layer(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the one with this dotted name; the quantizer of its output stays."""
    quantizer = detach(network.get_submodule(name))
    replace_modules(network, {name: layer})
    if quantizer is not None:
        attach(network, f"{name}.{OUTPUT}", quantizer)
    if has_places(network):
        follow(network)


def signals_of(network: nn.Module) -> dict[str, SignalQuantizer]:
    """The signal quantizers of a network by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, SignalQuantizer)}


def with_signals(network: nn.Module, grids: Mapping[str, Grid]) -> None:
    """Put the named signals on these grids, and take all others off theirs."""
    drop_places(network)
    for module in list(network.modules()):
        detach(module)
    for name, grid in grids.items():
        attach(network, name, SignalQuantizer(name, grid))


def _through_quantizer(module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    with aside():
        return module.get_submodule(OUTPUT)(output)
