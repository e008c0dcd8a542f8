"""Which channels of a network can be scaled together without changing what it computes.

What lies between convolutions is mostly homogeneous: ReLU, PReLU, sums, concatenations, pixel shuffles, maxima. If a
channel is g times as large, so is what they make of it. So a channel's numbers may be multiplied by g > 0 wherever they
are written, in the weights and biases of the convolutions that give them out, and divided by it wherever they are read.
All channels that a sum or a concatenation ties together need the same g.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.dataflow import Kind, Value, watch
from odm_deploy.networks.replacing import is_ordinary

Indices = NDArray[np.int64]

_MAP_RANK = 4
_SAME_CHANNELS = {"contiguous", "clone", "detach", "dropout", "max_pool2d", "boolean_dispatch"}
"""Moves that leave every value in its channel, or leave it out."""
_LINEAR = {"mul", "multiply", "div", "true_divide", "interpolate", "upsample_nearest2d"}
"""Linear in the only operand that depends on the image, channel by channel."""
_HOMOGENEOUS = {"prelu", "leaky_relu"}


@dataclass(frozen=True)
class ScalableChannels:
    """Sets of channels that have to be scaled alike; a set is a number."""

    reads: Mapping[str, Indices]
    """Of each convolution's input channels the sets, [C]."""
    writes: Mapping[str, Indices]
    """The same of its output channels, [O]."""
    count: int
    """Sets there are."""

    def scaled(self, network: nn.Module, factors: NDArray[np.float64]) -> None:
        """Scale the channels of `network` in place; it computes the same function.

        Args:
            network: the one this was found in, or a copy.
            factors: float64 [count], > 0. Powers of two change no bit of the result.
        """
        scale = torch.from_numpy(factors)
        with torch.no_grad():
            for name in self.reads:
                conv = network.get_submodule(name)
                assert isinstance(conv, nn.Conv2d)
                weight = conv.weight
                written = scale[torch.from_numpy(self.writes[name])]
                read = scale[torch.from_numpy(self.reads[name])].reshape(conv.groups, 1, -1, 1, 1)
                by_group = weight.double().unflatten(0, (conv.groups, -1)) / read
                weight.copy_(by_group.flatten(0, 1) * written.reshape(-1, 1, 1, 1))
                if conv.bias is not None:
                    conv.bias.copy_(conv.bias.double() * written)


def scalable_channels(network: SuperResolutionNetwork) -> ScalableChannels:
    """The sets of channels of a float network; those that nobody may scale are set 0."""
    modules = dict(network.named_modules())
    # Scaled for one layer, a parameter of two would be scaled for the other, too.
    owners = Counter(id(parameter) for module in modules.values() for parameter in module.parameters(recurse=False))

    def is_scalable(value: Value) -> bool:
        module = modules.get(value.name)
        if not (value.kind is Kind.LAYER and isinstance(module, nn.Conv2d) and is_ordinary(module)):
            return False
        shared = any(owners[id(parameter)] > 1 for parameter in module.parameters(recurse=False))
        return network.can_quantize(value.name) and bool(value.operands) and not shared

    sets = _Sets()
    reads: dict[str, Indices] = {}
    writes: dict[str, Indices] = {}
    of_value: dict[int, Indices] = {}
    for value in watch(network):
        operands = [of_value[id(operand)] for operand in value.operands]
        if is_scalable(value) and len(value.shape) == _MAP_RANK:
            if value.name in reads:
                # It runs again.
                sets.unite(reads[value.name], operands[0])
            else:
                reads[value.name], writes[value.name] = operands[0], sets.fresh(value.shape[1])
            found = writes[value.name]
        else:
            found = _passed_on(sets, value, operands)
        if found is None:
            for each in operands:
                sets.fix(each)
            found = sets.fixed(value.shape[1] if len(value.shape) > 1 else 1)
        if value.is_result or not value.readers:
            # What nobody is seen to read, code may read that is not seen to run.
            sets.fix(found)
        of_value[id(value)] = found
    numbers = sets.numbers()
    return ScalableChannels(
        {name: numbers[found] for name, found in reads.items()},
        {name: numbers[found] for name, found in writes.items()},
        int(numbers.max(initial=0)) + 1,
    )


def _passed_on(sets: _Sets, value: Value, operands: Sequence[Indices]) -> Indices | None:
    """The sets of a value's channels, given those of its operands; None where it cannot be scaled with them."""
    shapes = [operand.shape for operand in value.operands]
    if not operands or any(len(shape) != _MAP_RANK for shape in (value.shape, *shapes)):
        return None
    if value.kind is Kind.SUM:
        for other in operands[1:]:
            sets.unite(operands[0], other)
        return operands[0]
    if value.kind is Kind.JOIN:
        beside = all(shape[2:] == value.shape[2:] for shape in shapes)
        return np.concatenate(operands) if beside and sum(map(len, operands)) == value.shape[1] else None
    if len(operands) > 1:
        return None
    (found,) = operands
    if value.operation == "pixel_shuffle":
        by_pixel = found.reshape(value.shape[1], -1)
        for column in by_pixel.T[1:]:
            sets.unite(by_pixel[:, 0], column)
        return by_pixel[:, 0]
    same = value.kind is Kind.RECTIFIER or value.operation in _SAME_CHANNELS | _LINEAR | _HOMOGENEOUS
    return found if same and len(found) == value.shape[1] else None


class _Sets:
    """Disjoint sets of channels that grow together; element 0 stands for those that nobody may scale."""

    def __init__(self) -> None:
        self._parent = [0]

    def fresh(self, count: int) -> Indices:
        """New channels, each in a set of its own."""
        first = len(self._parent)
        self._parent += range(first, first + count)
        return np.arange(first, first + count)

    def fixed(self, count: int) -> Indices:
        """Channels that nobody may scale."""
        return np.zeros(count, np.int64)

    def unite(self, some: Indices, others: Indices) -> None:
        """Each of `some` shares a set with its counterpart in `others`."""
        for a, b in zip(some.tolist(), others.tolist(), strict=True):
            first, second = sorted((self._root(a), self._root(b)))
            self._parent[second] = first

    def fix(self, some: Indices) -> None:
        """Nobody may scale these any more."""
        self.unite(some, self.fixed(len(some)))

    def numbers(self) -> Indices:
        """The set of every channel, numbered from 0 without gaps."""
        roots = [self._root(index) for index in range(len(self._parent))]
        return np.unique(roots, return_inverse=True)[1]

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index
