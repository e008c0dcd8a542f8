"""Grids for the signals of a network, by what was seen of them while the float network ran."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack

from torch import Tensor, nn

from odm_deploy.grid import Grid
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.observers import InputObserver
from odm_deploy.quantization.operation_signals import ended_by_anything
from odm_deploy.quantization.power_of_two import round_to_multiples
from odm_deploy.quantization.ranges import RangeMethod, choose_grid
from odm_deploy.quantization.signal_plan import Signal, SignalPlan
from odm_deploy.quantization.signals import attach, with_signals

HEADROOM = 10 / 9
"""How much wider a signal's grid is than the range of the smallest squared error. What is cut off goes on along the
residual stream, and other images reach further. Ninths are never halves: where a layer takes the signal on a grid of
that range, no code lies on a rounding tie."""


class SignalObservers(AbstractContextManager["SignalObservers"]):
    """While this lasts, what becomes of a network's signals is summed up.

    Args:
        network: the float network; without any of this in the end.
        plan: what to look at.
        percentile: as `InputObserver`'s.
    """

    def __init__(self, network: SuperResolutionNetwork, plan: SignalPlan, percentile: float | None = None) -> None:
        self._network, self._plan = network, plan
        observers = {signal.name: InputObserver(signal.name, percentile) for signal in plan.signals}
        # What is joined is seen as one: its images are counted more than once, which only percentiles notice.
        self._watched = {
            signal.name: _Watched(signal, observers[plan.grid_owner(signal.name)]) for signal in plan.signals
        }
        self._runs = ExitStack()

    def __enter__(self) -> SignalObservers:
        self._runs.enter_context(ended_by_anything())
        for name, watched in self._watched.items():
            attach(self._network, name, watched)
        return self

    def __exit__(self, *_: object) -> None:
        self._runs.close()
        with_signals(self._network, {})

    def grids(
        self, bits: int, method: RangeMethod, *, power_of_two: bool = False, symmetric: bool = False
    ) -> dict[str, Grid]:
        """A grid for each signal, in the order of computation.

        Args:
            bits: width of its codes.
            method: how ranges are chosen.
            power_of_two: scales are powers of two.
            symmetric: at 8 bits zero is in the middle, but for the image's grid.

        Raises:
            InputError: no image was seen.
        """
        pixels = self._network.output_grid
        if pixels is not None and (pixels.bits != bits or (power_of_two and not pixels.is_power_of_two)):
            pixels = None
        found: dict[str, Grid] = {}
        for name, watched in self._watched.items():
            owner = self._plan.grid_owner(name)
            if watched.signal.is_image and pixels is not None:
                found[name] = pixels
            elif owner in found:
                found[name] = found[owner]
            else:
                found[name] = choose_grid(
                    watched.observer, bits, method, power_of_two=power_of_two, symmetric=symmetric
                )
                # A power of two above the best scale has such room, and the next one twice as much.
                if method is RangeMethod.MSE and not power_of_two:
                    lower, upper = HEADROOM * found[name].lower, HEADROOM * found[name].upper
                    found[name] = Grid.from_range(lower, upper, bits, symmetric=symmetric)
        return found


class _Watched(nn.Module):
    """Stands where the quantizer will stand, and only looks."""

    def __init__(self, signal: Signal, observer: InputObserver) -> None:
        super().__init__()
        self.signal, self.observer = signal, observer

    def forward(self, x: Tensor) -> Tensor:
        self.observer.add(x.clamp(min=0.0) if self.signal.is_rectified else x)
        return x


def sharing(plan: SignalPlan, signals: Mapping[str, Grid], bits: Mapping[str, int]) -> dict[str, Grid]:
    """Grids of the layers that read one signal of their own width: the signal's, so that nothing is rounded twice.

    Args:
        plan: which layer reads which signal.
        signals: their grids.
        bits: width of every quantized layer's input.
    """
    return {layer: signals[name] for layer, name in plan.feeds.items() if signals[name].bits == bits[layer]}


def on_grids(layers: Mapping[str, FrozenLayer], grids: Mapping[str, Grid]) -> dict[str, FrozenLayer]:
    """Layers with their input on other grids, where these are given."""
    return {
        name: dataclasses.replace(layer, grid=grids[name]) if name in grids else layer for name, layer in layers.items()
    }


def on_sum_units(layers: Mapping[str, FrozenLayer], signals: Mapping[str, Grid]) -> Mapping[str, FrozenLayer]:
    """Layers with biases rounded to what integer sums count in: input scale * weight scale of the channel.

    Runtimes that fuse a layer with the quantizer behind it add the bias to that sum, and round it so in any case;
    calibrated and learned biases lie anywhere. Without signals there are no such quantizers, and nothing is rounded.
    """
    return {name: _on_sum_units(layer) for name, layer in layers.items()} if signals else layers


def _on_sum_units(layer: FrozenLayer) -> FrozenLayer:
    if layer.bias is None or layer.grid.is_free:
        return layer
    return dataclasses.replace(
        layer, bias=round_to_multiples(layer.bias, layer.weight.scale.double() * layer.grid.scale)
    )
