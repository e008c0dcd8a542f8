"""What a quantization method is: quantizers for layers, losses, a rule that makes one gradient of them, an ending."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy.networks.base import SuperResolutionNetwork
from training.distributed import World
from training.losses.cooperative import combine_naively
from training.losses.features import KnowledgeTransfer
from training.model import TrainableModel
from training.quantizers.base import ActivationQuantizer, Kind, Quantizable, WeightQuantizer

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class Step:
    """One training step after its forward pass."""

    model: TrainableModel
    """What is trained; its `records()` are those of this forward."""
    low: Tensor
    """float32 [N, 3, H, W] in 0..255, the input."""
    high: Tensor
    """float32 [N, 3, scale*H, scale*W] in 0..255, the target."""
    output: Tensor
    """float32, shaped like `high`: the network's answer, with its graph."""
    iteration: int
    """0-based."""
    world: World
    """The processes that share the batch; the tensors here are this process's part."""
    autocast: bool = False
    """Whether forward passes of this run compute convolutions in bfloat16."""


class Method(ABC, Generic[OptionsT]):
    """A quantization method with its `options` from the recipe's `[method]`.

    Subclasses say which quantizers a layer gets; everything else has a plain default.
    """

    name: ClassVar[str]
    """Name in recipes."""
    Options: ClassVar[type[Any]]
    """Frozen dataclass of the method's settings."""
    records_features: ClassVar[bool] = False
    """Whether `auxiliary_loss` reads what went into the quantizers."""
    quantizes: ClassVar[bool] = True
    """Whether any layer gets quantizers; the float control has none."""
    power_of_two: bool = False
    """Whether scales are powers of two, as the `exact` profile needs."""
    auxiliary_name: ClassVar[str] = "auxiliary"
    """What logs and plots call the auxiliary loss."""
    auxiliary_weight: float = 0.0
    """lambda of the auxiliary loss; 0 leaves it out."""
    auxiliary_moves_quantizers: bool = False
    """Whether the auxiliary loss is differentiated with respect to ranges and offsets, too."""
    at_weights_rate: ClassVar[frozenset[Kind]] = frozenset()
    """Kinds of quantizer parameters that learn at the rate of weights where the recipe gives them none of their own."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    def adapt(self, network: SuperResolutionNetwork) -> SuperResolutionNetwork:
        """The float network to quantize, made of the one that was loaded: with what the method adds to its structure.

        It computes the same function.
        """
        return network

    @abstractmethod
    def activation_quantizer(self, bits: int, layer: Quantizable) -> ActivationQuantizer:
        """A fresh quantizer for the input of `layer`."""

    @abstractmethod
    def weight_quantizer(self, bits: int, layer: Quantizable) -> WeightQuantizer:
        """A fresh quantizer for the weights of `layer`."""

    def initialize(self, model: TrainableModel) -> None:
        """Set the quantizers' parameters after calibration."""
        for layer in model.layers.values():
            layer.activation.initialize()

    def watch(self, model: TrainableModel, float_network: SuperResolutionNetwork) -> None:
        """Called once before training, for methods that compare `model` with the float network it came from."""

    def begin_iteration(self, model: TrainableModel, iteration: int) -> None:
        """Called before the forward pass of each iteration, for methods with phases."""

    def passes(self, model: TrainableModel) -> AbstractContextManager[object]:
        """Entered around the forward and backward passes of each step, on the device."""
        return nullcontext()

    def operations(self, iteration: int) -> Hashable:
        """What kind of step `iteration` is: equal values promise the same operations on the same tensors."""
        return None

    def reconstruction_loss(self, step: Step) -> Tensor:
        """Mean absolute error of the output; float32 []."""
        return F.l1_loss(step.output, step.high)

    def auxiliary_loss(self, step: Step) -> Tensor | None:
        """This process's share of the loss on features that `combine` weighs in; None: this step has none."""
        return None

    def combine(self, reconstruction: dict[str, Tensor], auxiliary: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradient to follow, by parameter name, from those of the two losses (already averaged over processes)."""
        return combine_naively(reconstruction, auxiliary, self.auxiliary_weight)

    def simplify(self, model: TrainableModel) -> str:
        """Called once before freezing: give up what has no static form, where the options ask for it.

        Returns:
            What was given up, as a clause; empty: nothing.
        """
        return ""

    def why_not_exportable(self) -> str | None:
        """Why a run with these options cannot end in a `model.pt`; None: it can."""
        return None


@dataclass(frozen=True)
class TransferOptions:
    """Settings of methods that learn from the float network's features."""

    skt_weight: float = 1000.0
    """Weight of the structured knowledge transfer; 0: none."""


TransferOptionsT = TypeVar("TransferOptionsT", bound=TransferOptions)


class TransferMethod(Method[TransferOptionsT]):
    """A method whose reconstruction loss is L1 + 1000 L_SKT (PAMS, Sec. 3.3)."""

    _transfer: KnowledgeTransfer | None = None

    def watch(self, model: TrainableModel, float_network: SuperResolutionNetwork) -> None:
        """Make the float network the teacher."""
        if self.options.skt_weight:
            self._transfer = KnowledgeTransfer(model, float_network)

    def reconstruction_loss(self, step: Step) -> Tensor:
        """L1 + 1000 L_SKT."""
        loss = super().reconstruction_loss(step)
        if self._transfer is None:
            return loss
        return loss + self.options.skt_weight * self._transfer.loss(step.low, autocast=step.autocast)


@dataclass(frozen=True)
class Gradients:
    """What one step's losses ask for, averaged over processes; the dictionaries are by parameter name."""

    loss: Tensor
    """Reconstruction loss: the global mean, detached, float32 []."""
    reconstruction: dict[str, Tensor]
    """g_R, for every trained parameter it reaches."""
    auxiliary_loss: Tensor | None
    """The global auxiliary loss, detached, float32 []; None: this step has none."""
    auxiliary: dict[str, Tensor]
    """g_aux, for the parameters that follow it and that it reaches."""
    combined: dict[str, Tensor]
    """The gradient the method follows."""


def gradients(method: Method[Any], step: Step) -> Gradients:
    """Both losses' gradients and what the method makes of them.

    Quantizer parameters receive the reconstruction gradient only (ODM v2), unless the method says otherwise: the
    auxiliary loss is not even differentiated with respect to them.
    """
    parameters, world = step.model.parameters(), step.world
    loss = method.reconstruction_loss(step)
    auxiliary_loss = method.auxiliary_loss(step) if method.auxiliary_weight else None
    reconstruction = _differentiate(loss, parameters, retain=auxiliary_loss is not None)
    auxiliary: dict[str, Tensor] = {}
    if auxiliary_loss is not None:
        quantizer = {} if method.auxiliary_moves_quantizers else step.model.quantizer_parameters()
        followers = {name: parameter for name, parameter in parameters.items() if name not in quantizer}
        auxiliary = _differentiate(auxiliary_loss, followers, retain=False)
        auxiliary_loss = world.sum([auxiliary_loss.detach().reshape(1)])[0][0]
    reconstruction = world.sum_named(reconstruction, 1.0 / world.size)
    auxiliary = world.sum_named(auxiliary, 1.0)
    return Gradients(
        loss=world.sum([loss.detach().reshape(1)])[0][0] / world.size,
        reconstruction=reconstruction,
        auxiliary_loss=auxiliary_loss,
        auxiliary=auxiliary,
        combined=method.combine(reconstruction, auxiliary),
    )


def _differentiate(loss: Tensor, parameters: dict[str, nn.Parameter], *, retain: bool) -> dict[str, Tensor]:
    grads = torch.autograd.grad(loss, list(parameters.values()), retain_graph=retain, allow_unused=True)
    # The stubs do not know that parameters the loss does not reach have None.
    optional = cast("tuple[Tensor | None, ...]", grads)
    found = {name: grad for name, grad in zip(parameters, optional, strict=True) if grad is not None}
    return {name: _laid_out_as(parameters[name], grad) for name, grad in found.items()}


def _laid_out_as(parameter: Tensor, grad: Tensor) -> Tensor:
    """`grad` in the memory layout of its parameter, which Adam's one kernel asks for."""
    return grad if grad.stride() == parameter.stride() else torch.empty_like(parameter).copy_(grad)
