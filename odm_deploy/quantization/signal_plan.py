"""Which tensors have to lie on grids so that integers flow from layer to layer, and which quantizers see the same one.

- The output of a convolution, unless one quantized layer alone reads it: that layer's own grid serves, then. Where only
  rectifiers read it, its grid starts at zero and rectifies by itself.
- Sums of feature maps, with the same exception, and what goes into them or is joined with others.
- The output of the last convolution, on the grid of the image where it is the image.

Tensors that are joined into one share a grid, so that joining them is joining their codes.

Nothing else: linear layers give to normalisations and softmax, which compute in float whatever they are given. A sum
that only the image follows stays float, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from torch import nn

from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.dataflow import Kind, Value, watch
from odm_deploy.networks.operations import PRODUCTS, QUOTIENTS
from odm_deploy.quantization.signals import OUTPUT

_MAP_RANK = 4


@dataclass(frozen=True)
class Signal:
    """A tensor that is to lie on a grid."""

    name: str
    """`{module}.output`."""
    is_rectified: bool
    """Only rectifiers read it: its grid starts at zero."""
    is_image: bool
    """It is the network's output, but for what `SuperResolutionNetwork.output_grid` knows of."""


@dataclass(frozen=True)
class SignalPlan:
    """The signals of a network."""

    signals: tuple[Signal, ...] = ()
    """In the order of computation."""
    feeds: Mapping[str, str] = field(default_factory=dict[str, str])
    """Layer -> the signal that is all it reads, or of joined ones the first: where widths agree they share one grid."""
    left: tuple[str, ...] = ()
    """Sums that stay float, because something in them has no place for a quantizer."""
    sums: int = 0
    """Sums of feature maps there are, left ones and others."""
    alike: tuple[tuple[str, ...], ...] = ()
    """Signals that are joined, and so lie on one grid."""

    @property
    def outputs(self) -> dict[str, bool]:
        """Modules whose output is a signal, but for the image -> whether its grid starts at zero."""
        return {
            signal.name.removesuffix(f".{OUTPUT}"): signal.is_rectified
            for signal in self.signals
            if not signal.is_image
        }

    def grid_owner(self, signal: str) -> str:
        """The signal whose grid this one shares: its own, or that of the first one it is joined with."""
        return next((group[0] for group in self.alike if signal in group), signal)


def plan_signals(
    network: SuperResolutionNetwork, quantized: Set[str], *, fused: bool = False, operations: bool = True
) -> SignalPlan:
    """The signals of a float network, given the names of the layers that are quantized.

    With `fused` a convolution that one sum or activation function alone reads gives it floats, one convolution a sum:
    kernels that go on with what they have just summed up need no code of it, and nothing is rounded twice.
    Without `operations` only modules have signals: what proves models exact sees nothing else.
    """
    values = watch(network)
    modules = dict(network.named_modules())
    convolutions = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    wanted: dict[str, list[Value]] = {}
    left: list[str] = []
    sums = 0
    taken = _taken_over(values, quantized & convolutions, fused=fused, scaled=operations)

    def has_place(value: Value) -> bool:
        return _has_place(value, convolutions) and (operations or value.kind is Kind.JOIN or value.module in modules)

    def want(value: Value) -> None:
        wanted.setdefault(value.module, []).append(value)

    for value in values:
        if value.kind is Kind.LAYER:
            if value.name in quantized & convolutions and value not in taken and not _is_served(value, quantized):
                want(value)
        elif value.kind in (Kind.SUM, Kind.JOIN) and len(value.shape) == _MAP_RANK and value.leads_to_a_layer():
            parts = _parts_of(value)
            if value.kind is Kind.SUM:
                sums += 1
                if not has_place(value) or not all(has_place(part) for part in parts):
                    left.append(value.name)
                    continue
                if not _is_served(value, quantized):
                    want(value)
            for part in parts:
                if part.kind not in (Kind.SUM, Kind.JOIN) and part not in taken and has_place(part):
                    want(part)
    runs: dict[str, list[Value]] = {}
    for value in values:
        runs.setdefault(value.module, []).append(value)
    signals = tuple(
        Signal(f"{module}.{OUTPUT}", all(map(_is_rectified, made)), all(map(_is_image, made)))
        for module, made in runs.items()
        if module in wanted
    )
    names = [signal.name for signal in signals]
    alike = _joined(values, names)
    owners = {name: group[0] for group in alike for name in group}
    return SignalPlan(signals, _feeds(values, quantized, set(names), owners), tuple(left), sums, alike)


def _parts_of(value: Value) -> list[Value]:
    """What a sum adds, or a concatenation joins, with concatenations in it taken apart."""
    parts = [operand.origin() for operand in value.operands]
    return parts if value.kind is Kind.SUM else _taken_apart(parts)


def _taken_over(values: list[Value], quantized: Set[str], *, fused: bool, scaled: bool) -> set[Value]:
    """Results of quantized convolutions that their only reader goes on with: constant factors of terms, which weights
    take in; and if `fused` functions, and of sums the last term.
    """
    order = {value: position for position, value in enumerate(values)}
    found: set[Value] = set()
    for value in values:
        is_sum = value.kind is Kind.SUM and len(value.shape) == _MAP_RANK and value.leads_to_a_layer() and value.module
        is_term = scaled and _is_scaled(value) and [reader.kind for reader in value.readers] == [Kind.SUM]
        if is_term or (fused and (is_sum or value.kind is Kind.ACTIVATION)):
            own = [part for part in value.operands if part.name in quantized and part.readers == [value]]
            found.update(sorted(own, key=lambda part: order[part])[-1:])
    return found


def _taken_apart(parts: Sequence[Value]) -> list[Value]:
    return [part for each in parts for part in (_parts_of(each) if each.kind is Kind.JOIN else [each])]


def _joined(values: list[Value], signals: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The signals that end up side by side in some concatenation, directly or through others; each in `signals`' order.

    Only of concatenations all of whose parts are signals: the others stay float anyway.
    """
    group_of = {name: {name} for name in signals}
    for value in values:
        names = [f"{part.module}.{OUTPUT}" for part in _parts_of(value)] if value.kind is Kind.JOIN else []
        if names and all(name in group_of for name in names):
            merged = set[str]().union(*(group_of[name] for name in names))
            group_of.update(dict.fromkeys(merged, merged))
    groups = {id(group): group for group in group_of.values() if len(group) > 1}
    return tuple(tuple(sorted(group, key=signals.index)) for group in groups.values())


def _has_place(value: Value, convolutions: Set[str]) -> bool:
    """Whether a quantizer can stand where the value is made, or its parts have grids of their own."""
    if value.kind is Kind.LAYER:
        return value.name in convolutions
    if value.kind is Kind.JOIN:
        return True
    return bool(value.module) and (value.kind in (Kind.SUM, Kind.ACTIVATION, Kind.PRODUCT) or _is_scaled(value))


def _is_scaled(value: Value) -> bool:
    """Whether it is another value times a constant."""
    return value.kind is Kind.OTHER and len(value.operands) == 1 and value.operation in PRODUCTS | QUOTIENTS


def _is_served(value: Value, quantized: Set[str]) -> bool:
    """Whether one quantized layer alone reads it."""
    uses = list(value.uses())
    return len(uses) == 1 and uses[0].kind is Kind.LAYER and uses[0].name in quantized


def _is_rectified(value: Value) -> bool:
    return bool(value.readers) and all(reader.kind is Kind.RECTIFIER for reader in value.readers)


def _is_image(value: Value) -> bool:
    """Whether nothing but the network's own arithmetic lies between it and the result."""
    while not value.is_result:
        if len(value.readers) != 1:
            return False
        value = value.readers[0]
        if value.kind is not Kind.MOVE and not value.is_made_by_the_network_itself():
            return False
    return True


def _feeds(values: list[Value], quantized: Set[str], signals: Set[str], owners: Mapping[str, str]) -> dict[str, str]:
    """Quantized layers that read one signal in each of their runs, or signals of one grid."""
    origins: dict[str, set[str]] = {}
    for value in values:
        if value.kind is Kind.LAYER and value.name in quantized:
            parts = _taken_apart([operand.origin() for operand in value.operands])
            made_by = {f"{part.module}.{OUTPUT}" for part in parts}
            read = {owners.get(name, name) if name in signals else "" for name in made_by}
            origins.setdefault(value.name, set()).update(read)
    return {layer: next(iter(names)) for layer, names in origins.items() if len(names) == 1 and names <= signals}
