"""A network in training: its quantized layers, what they record, and how it becomes a `model.pt`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.networks.base import Region, SuperResolutionNetwork
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.exact.freeze import freeze_exact
from odm_deploy.quantization.model import QuantizedModel, freeze
from odm_deploy.quantization.operation_signals import ended_by_anything
from odm_deploy.quantization.policy import LayerBits
from odm_deploy.quantization.signal_calibration import on_sum_units
from odm_deploy.quantization.signals import replace_layer
from training.quantizers.base import Kind, PixelGrid, Quantizable, Quantizers
from training.quantizers.layers import TrainableConv2d, TrainableLayer, TrainableLinear
from training.quantizers.learnable_range import LearnableRange
from training.quantizers.signals import TrainableSignal, attach_signals


@dataclass(frozen=True)
class TrainableModel:
    """A network whose selected layers are `TrainableLayer`s."""

    network: SuperResolutionNetwork
    """float32 [N, 3, H, W] in 0..255 -> [N, 3, scale*H, scale*W], unclamped."""
    layers: Mapping[str, TrainableLayer]
    """The quantized layers by dotted name, in network order."""
    exact: bool = False
    """Whether its frozen form must be proven to compute the same bits everywhere (`quantization.exact.freeze`)."""
    signals: Mapping[str, TrainableSignal] = field(default_factory=dict[str, TrainableSignal])
    """The quantized tensors between layers, by name."""

    @classmethod
    def attach(
        cls,
        network: SuperResolutionNetwork,
        widths: Mapping[str, LayerBits],
        method: Quantizers,
        *,
        exact: bool = False,
        signals: int | None = None,
    ) -> TrainableModel:
        """A copy of a float network with the method's quantizers on the layers named in `widths`.

        With `exact` the copy's constants, biases and image grid are those of the `exact` profile. `signals` are the
        bits of the tensors between layers (`quantization.signal_plan`); None: they stay float. A layer that reads one
        of them learns its range together with it, where the method's range is a learnable one.

        Raises:
            InputError: a network that cannot be exact; a selected layer that is no Conv2d or Linear, or one the method
                cannot quantize at that width.
        """
        trainable = copy.deepcopy(network).train()
        if exact:
            trainable.make_exact()
        between: dict[str, TrainableSignal] = {}
        shared: dict[str, LearnableRange] = {}
        if signals is not None:
            inputs = {name: bits.activation for name, bits in widths.items()}
            between, shared = attach_signals(trainable, inputs, signals, power_of_two=exact)
        modules = dict(trainable.named_modules())
        layers: dict[str, TrainableLayer] = {}
        for name, bits in widths.items():
            module = modules[name]
            if not isinstance(module, Quantizable):
                raise InputError(f"cannot train {name}", why=f"it is a {type(module).__name__}, not a Conv2d or Linear")
            kind = TrainableConv2d if isinstance(module, nn.Conv2d) else TrainableLinear
            layer = kind(
                name,
                module,
                PixelGrid(trainable.pixel_grid)
                if exact and trainable.region_of(name) is Region.HEAD
                else method.activation_quantizer(bits.activation, module),
                method.weight_quantizer(bits.weight, module),
            )
            layer.rounds_bias = exact
            if name in shared and type(layer.activation) is LearnableRange:
                layer.activation = shared[name]
            replace_layer(trainable, name, layer)
            layers[name] = layer
        if exact:
            # What lies between quantized layers are constants on dyadic grids; training would move them off.
            quantizers = [*layers.values(), *between.values()]
            learned = {id(parameter) for quantizer in quantizers for parameter in quantizer.parameters()}
            for parameter in trainable.parameters():
                parameter.requires_grad_(parameter.requires_grad and id(parameter) in learned)
        return cls(trainable, layers, exact, between)

    @ended_by_anything()
    def __call__(self, images: Tensor) -> Tensor:
        """Upscale, differentiably."""
        output: Tensor = self.network(images)
        return output

    @torch.no_grad()
    def calibrate(self, batches: Iterator[Tensor]) -> None:
        """Let every quantizer observe the float network's activations. Each batch: float32 [N, 3, H, W]."""
        self._set("calibrating", True)
        try:
            for batch in batches:
                self.network(batch)
        finally:
            self._set("calibrating", False)
        read = {id(layer.activation) for layer in self.layers.values()}
        # Signals that are joined have one range, and the method initializes those that layers share.
        for signal in {id(signal.range): signal for signal in self.signals.values()}.values():
            if id(signal.range) not in read:
                signal.initialize()

    @contextmanager
    def recording(self) -> Generator[None, None, None]:
        """Within it, every layer keeps what went into and came out of its activation quantizer."""
        self._set("recording", True)
        try:
            yield
        finally:
            self._set("recording", False)
            for layer in self.layers.values():
                layer.recorded = None

    def records(self) -> list[tuple[Tensor, Tensor]]:
        """(input, levels) of every quantizer in the latest forward, in network order; only while recording."""
        return [layer.recorded for layer in self.layers.values() if layer.recorded is not None]

    def project(self) -> None:
        """Bring all quantizer parameters back to where they mean something."""
        quantizers = [part for layer in self.layers.values() for part in (layer.activation, layer.weight_quantizer)]
        quantizers += [signal.range for signal in self.signals.values()]
        # Layers share ranges with signals.
        kinds: dict[type[Any], dict[int, Any]] = {}
        for quantizer in quantizers:
            kinds.setdefault(type(quantizer), {})[id(quantizer)] = quantizer
        for kind, members in kinds.items():
            kind.project_all(list(members.values()))

    def parameters(self) -> dict[str, nn.Parameter]:
        """All trained parameters by name; those a method holds fixed and constants such as mean shifts are left out."""
        return {name: parameter for name, parameter in self.network.named_parameters() if parameter.requires_grad}

    def quantizer_parameters(self) -> dict[str, Kind]:
        """What each parameter that belongs to a quantizer is, by name: ranges, steps, clipping scales, offsets, ..."""
        quantizers = {
            f"{name}.{part}": quantizer
            for name, layer in self.layers.items()
            for part, quantizer in (("activation", layer.activation), ("weight_quantizer", layer.weight_quantizer))
        }
        quantizers |= {f"{name}.range": signal.range for name, signal in self.signals.items()}
        return {
            f"{name}.{key}": quantizer.kind_of(key)
            for name, quantizer in quantizers.items()
            for key, parameter in quantizer.named_parameters()
            if parameter.requires_grad
        }

    def float_network(self) -> SuperResolutionNetwork:
        """The plain float network with the trained weights, in eval mode, on the CPU."""
        network = build_network(self.network.name, dataclasses.asdict(self.network.config))
        state = self.network.state_dict()
        network.load_state_dict({key: state[key].detach().cpu() for key in network.state_dict()})
        return network.eval()

    def freeze(self, metadata: dict[str, Any]) -> QuantizedModel:
        """The quantized model that gives the same bits as this one, but for biases where signals are quantized.

        Raises:
            InputError: a layer that has no static integer form, or a sum that is not exact in a model that must be; the
                line says why.
        """
        model = copy.deepcopy(self)
        layers = {name: layer.cpu().freeze() for name, layer in model.layers.items()}
        signals = {name: signal.cpu().range.grid() for name, signal in model.signals.items()}
        if not self.exact:
            return freeze(self.float_network(), on_sum_units(layers, signals), metadata, signals)
        frozen = freeze(self.float_network(), layers, metadata, signals)
        # Where ranges are such that a sum does not fit float32, weights get coarser (8 bits, a few channels).
        return freeze_exact(frozen, {name: layer.weight.detach().cpu() for name, layer in self.layers.items()})

    def _set(self, attribute: str, value: bool) -> None:
        for quantizer in (*self.layers.values(), *self.signals.values()):
            setattr(quantizer, attribute, value)
