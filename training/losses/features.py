"""Losses on features and outputs, as the methods' papers define them. Features are in units of the 0..255 image."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.networks.base import Region, SuperResolutionNetwork
from odm_deploy.quantization.policy import quantizable_layers
from training.acceleration import bfloat16_convolutions
from training.distributed import World
from training.model import TrainableModel


def mismatch_loss(records: Sequence[tuple[Tensor, Tensor]], world: World) -> Tensor:
    """ODM v2's feature mismatch: sum over layers of || X_i - q(X_i) ||_2, q(X_i) held fixed; float32 [].

    The norm is the un-averaged Frobenius norm over the whole batch. With several processes each returns its share: the
    gradients of the shares add up to the gradient of the loss on the global batch. `records` are those of the model.
    """
    if world.size == 1:
        norms = [torch.linalg.vector_norm(x - levels.detach()) for x, levels in records]
        return torch.stack(norms).sum()
    local = torch.stack([(x - levels.detach()).square().sum() for x, levels in records])
    everywhere = world.sum([local.detach().clone()])[0].clamp(min=torch.finfo(torch.float32).tiny)
    # d||v|| = v dv / ||v||: the gradient needs the global norm, the numerator is this process's.
    return (local / (2 * everywhere.sqrt())).sum()


def variance_loss(records: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """ODM v1's L_V / lambda_V: the sum over layers of the standard deviation of X_i over batch, channels and space."""
    return torch.stack([x.float().std(correction=0) for x, _ in records]).sum()


def structured_knowledge(features: Tensor) -> Tensor:
    """What SKT compares: the channel mean of X^2, flattened, with unit L2 norm per image; [N, H*W]. (PAMS, 3.3)"""
    return F.normalize(features.float().square().mean(dim=1).flatten(1), dim=1)


def structured_knowledge_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """L_SKT, the mean squared distance between the two structured knowledges; float32 []."""
    return (structured_knowledge(student) - structured_knowledge(teacher)).square().mean()


class KnowledgeTransfer:
    """L_SKT between a model in training and its float origin (PAMS, Li et al., ECCV 2020, Sec. 3.3).

    The features compared are what enters the upsampler: body output plus global skip.
    """

    def __init__(self, model: TrainableModel, float_network: SuperResolutionNetwork) -> None:
        self._teacher = _frozen_copy(float_network, model)
        layer = _first_tail_layer(float_network)
        self._features: dict[str, Tensor] = {}
        self._tap("student", model.network.get_submodule(layer))
        self._tap("teacher", self._teacher.get_submodule(layer))

    def loss(self, low: Tensor, *, autocast: bool = False) -> Tensor:
        """L_SKT of the latest forward of the model, whose input was `low` (see `Step`); float32 []."""
        student = self._features.pop("student")
        with torch.no_grad(), bfloat16_convolutions(low.device, autocast):
            self._teacher(low)
        return structured_knowledge_transfer(student, self._features.pop("teacher"))

    def _tap(self, name: str, module: nn.Module) -> None:
        def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._features[name] = inputs[0]

        module.register_forward_pre_hook(keep)


class TeacherSupervision:
    """The float network's output as a second target (He et al., FAKD, ICIP 2020: teacher supervision)."""

    def __init__(self, model: TrainableModel, float_network: SuperResolutionNetwork) -> None:
        self._teacher = _frozen_copy(float_network, model)

    def loss(self, low: Tensor, output: Tensor, *, autocast: bool) -> Tensor:
        """Mean absolute difference between `output` and what the float network makes of `low` (see `Step`)."""
        with torch.no_grad(), bfloat16_convolutions(low.device, autocast):
            target: Tensor = self._teacher(low)
        return F.l1_loss(output, target.float())


def _frozen_copy(float_network: SuperResolutionNetwork, model: TrainableModel) -> SuperResolutionNetwork:
    teacher = copy.deepcopy(float_network).eval().requires_grad_(False)
    return teacher.to(next(model.network.parameters()).device)


def _first_tail_layer(network: SuperResolutionNetwork) -> str:
    for name in quantizable_layers(network):
        if network.region_of(name) is Region.TAIL:
            return name
    raise InputError(f"{network.name} has no upsampler to transfer knowledge to", fix="set method.skt_weight=0")
