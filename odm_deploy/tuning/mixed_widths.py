"""Mixed widths: the fewest layers in float, or at 8 bits in models of fewer, that keep a goal.

Layers are ranked by what they cost at the output for each multiply-add (`tuning.sensitivity`). The shortest beginning
of that ranking that keeps the goal is found by bisection; every candidate is measured on the held-back images, since
errors of layers do not simply add up. Then layers that turn out not to be needed get their narrow width back, the most
expensive first. NNCF's accuracy control and ModelOpt's AutoQuantize work alike.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from odm_deploy.errors import GateError
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.progress import Say, Track, counted, silent, untracked
from odm_deploy.quantization.exact.freeze import freeze_exact
from odm_deploy.quantization.float_form import float_form
from odm_deploy.quantization.layers import QuantizedLayer
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.signals import replace_layer
from odm_deploy.tuning.goals import Goal
from odm_deploy.tuning.held_back import HeldBack, OutputCost
from odm_deploy.tuning.sensitivity import MACS, LayerSensitivity, layer_sensitivities, macs_shares

MOST_RETURNS = 12
"""Layers that are tried at their narrow width again after the bisection, where the goal has to be kept."""

MOST_LAST = 3
"""Layers that are tried as the only quantized one, where the goal is missed with the best of the others."""


@dataclass(frozen=True)
class MixedWidths:
    """A model that keeps a goal, and its price."""

    model: QuantizedModel
    before: OutputCost
    """Of the model at its uniform width."""
    after: OutputCost
    """Of `model`, on the same images."""
    widened: tuple[str, ...]
    """Layers at 8 bits instead of fewer, in network order."""
    in_float: tuple[str, ...]
    """Layers in float, in network order."""
    quantized_share_before: float
    """Share of multiply-adds in quantized layers at the uniform width, 0 to 1."""
    quantized_share: float
    """The same of `model`: what is left to int8 arithmetic."""
    measured: int
    """Candidates measured."""
    share_of: str = MACS
    """What the shares are of: `WEIGHTS` where multiply-adds cannot be counted."""


@dataclass(frozen=True)
class _Move:
    """One layer made better: taken from a wider model, or left float."""

    layer: str
    wide: QuantizedLayer | None
    """None: float."""
    gain: float
    """Mean squared error saved at the output."""
    price: float
    """Its share of multiply-adds."""


def keep_goal(
    network: SuperResolutionNetwork,
    model: QuantizedModel,
    held_back: HeldBack,
    goal: Goal,
    *,
    wide: Callable[[], QuantizedModel] | None = None,
    track: Track = untracked,
    say: Say = silent,
) -> MixedWidths:
    """Make the fewest layers of `model` better until it keeps `goal`.

    Args:
        network: the float network.
        model: its quantized form; left as it is. An exact model stays exact, so none of its layers becomes float.
        held_back: images to judge by, with the float network's outputs.
        goal: what to keep.
        wide: makes the same network with layers at more bits, which are tried before float ones; called if need be.
        track: for progress bars.
        say: takes a line about the search.

    Raises:
        GateError: even with one quantized layer left (in an exact model: with all at 8 bits) the goal is missed, and it
            is not one that is only striven for.
        UsageError: a goal that cannot be measured on these images.
    """
    search = _Search(network, model, held_back, goal)
    goal.check(with_truth=held_back.has_truth)
    before = held_back.measure(model)
    share_before = search.share_of(model)
    if not goal.misses(before):
        return MixedWidths(model, before, before, (), (), share_before, share_before, 1, search.counted_in)
    moves = _ranked_moves(network, model, None if wide is None else wide(), held_back, track)
    ways = _leaving_one(moves)
    if goal.float_share is not None:
        ways = search.affordable(ways[0])
    chosen = search.fewest(ways, track, say)
    mixed, after = search.finished(chosen)
    order = list(model.layers)
    return MixedWidths(
        mixed,
        before,
        after,
        tuple(sorted((move.layer for move in _latest(chosen) if move.wide is not None), key=order.index)),
        tuple(sorted((move.layer for move in _latest(chosen) if move.wide is None), key=order.index)),
        share_before,
        search.share_of(mixed),
        search.measured + 1,
        search.counted_in,
    )


def _ranked_moves(
    network: SuperResolutionNetwork,
    model: QuantizedModel,
    wide: QuantizedModel | None,
    held_back: HeldBack,
    track: Track,
) -> list[_Move]:
    """All moves, best first; those that leave layers float come after those to the wider model."""
    narrow = layer_sensitivities(network, model, held_back.lows, track)
    if wide is None:
        return [] if model.exact else _to_float(narrow)
    wider = {each.name: each for each in layer_sensitivities(network, wide, held_back.lows, track)}
    layers = wide.layers
    moves = [
        _Move(each.name, layers[each.name], each.error - wider[each.name].error, each.macs_share)
        for each in narrow
        if each.name in wider and _bits(wider[each.name]) > _bits(each)
    ]
    remaining = [wider.get(each.name, each) for each in narrow]
    return _by_worth(moves) + ([] if model.exact else _to_float(remaining))


def _bits(layer: LayerSensitivity) -> int:
    return layer.weight_bits + layer.activation_bits


def _to_float(sensitivities: Sequence[LayerSensitivity]) -> list[_Move]:
    """Moves to float, best first."""
    return _by_worth([_Move(each.name, None, each.error, each.macs_share) for each in sensitivities])


def _leaving_one(moves: list[_Move]) -> list[list[_Move]]:
    """The moves without the last one to float, or nothing would be quantized; then without one that saves least.

    The last one saves little for its work, but that may be most of the network's. What each saves is an estimate.
    """
    floats = [move for move in moves if move.wide is None]
    left = {move.layer: move for move in floats[-1:] + sorted(floats, key=lambda move: move.gain)[:MOST_LAST]}
    return [[each for each in moves if each is not move] for move in left.values()] or [moves]


def _by_worth(moves: Sequence[_Move]) -> list[_Move]:
    return sorted(moves, key=lambda move: -move.gain / max(move.price, 1e-9))


def _affordable(moves: Sequence[_Move], share: float) -> list[_Move]:
    """The best moves whose float layers together have no more than this share of multiply-adds."""
    chosen: list[_Move] = []
    for move in moves:
        price = 0.0 if move.wide is not None else move.price
        if price <= share:
            share -= price
            chosen.append(move)
    return chosen


def _latest(moves: Sequence[_Move]) -> list[_Move]:
    """The last move of each layer: float after wide."""
    return list({move.layer: move for move in moves}.values())


class _Search:
    """Candidates built and measured."""

    def __init__(self, network: SuperResolutionNetwork, model: QuantizedModel, held_back: HeldBack, goal: Goal) -> None:
        self.network, self.model, self.held_back, self.goal = float_form(network, model), model, held_back, goal
        self.measured = 1
        self._shares, self.counted_in = macs_shares(network)

    def share_of(self, model: QuantizedModel) -> float:
        """Share of multiply-adds in quantized layers."""
        return sum(self._shares[name] for name in model.layers)

    def affordable(self, moves: list[_Move]) -> list[list[_Move]]:
        """The best moves that a goal which is only striven for allows; from now on that is the goal."""
        assert self.goal.float_share is not None
        best = _affordable(moves, self.goal.float_share)
        if (easier := self.goal.otherwise) is None or not self.goal.asks_for_more(self._cost(best)):
            return [best]
        self.goal = easier
        return self.affordable(moves)

    def fewest(self, ways: list[list[_Move]], track: Track, say: Say) -> list[_Move]:
        """The moves to make, of the first of some lists that keeps the goal as a whole."""
        striving = self.goal.float_share is not None
        moves, nearest = ways[0], self._cost(ways[0])
        for way in ways[1:]:
            if not self.goal.misses(nearest):
                break
            cost = self._cost(way)
            if cost.psnr_db > nearest.psnr_db or not self.goal.misses(cost):
                moves, nearest = way, cost
        if misses := self.goal.misses(nearest):
            if striving:
                return moves
            quantized = len(self.model.layers) - sum(move.wide is None for move in _latest(moves))
            fix = "allow more" if self.model.exact else "allow more, or leave the network in float"
            if self.model.signals:
                other = "exact" if self.model.exact else "deploy"
                fix += f"; --profile {other} has no 8-bit sums, which cost some of it"
            raise GateError(
                "the goal cannot be kept",
                why=f"{' and '.join(misses)}, with "
                + (
                    "all layers at 8 bits, and an exact model has no float layers"
                    if self.model.exact
                    else f"all but {counted(quantized, 'layer')} in float"
                ),
                fix=fix,
            )
        missed, kept = 0, len(moves)
        for _ in track(range((len(moves)).bit_length()), len(moves).bit_length(), "fewest layers"):
            if kept - missed > 1:
                middle = (missed + kept) // 2
                if self.goal.misses(self._cost(moves[:middle])):
                    missed = middle
                else:
                    kept = middle
        chosen = moves[:kept]
        if striving:
            return chosen
        say(f"{kept} of {len(moves)} changes keep the goal; trying to do without some of them")
        # The last one is needed: without it the goal was missed.
        candidates = sorted(chosen[:-1], key=lambda move: -move.price)[:MOST_RETURNS]
        for move in track(candidates, len(candidates), "layers not needed"):
            without = [each for each in chosen if each is not move]
            if not self.goal.misses(self._cost(without)):
                chosen = without
        return chosen

    def finished(self, moves: Sequence[_Move]) -> tuple[QuantizedModel, OutputCost]:
        """The model with these moves made, an exact one proven anew; and its cost, which keeps the goal.

        Raises:
            GateError: the proof made scales coarser, and the goal is missed now.
        """
        mixed = self._mixed(moves)
        if self.model.exact is not None:
            weights = {name: self.network.get_submodule(name).get_parameter("weight") for name in mixed.layers}
            mixed = freeze_exact(mixed, weights)
        cost = self.held_back.measure(mixed)
        if (misses := self.goal.misses(cost)) and self.goal.float_share is None:
            raise GateError(f"the goal is missed: {' and '.join(misses)}", why="after proving the model exact")
        return mixed, cost

    def _cost(self, moves: Sequence[_Move]) -> OutputCost:
        self.measured += 1
        return self.held_back.measure(self._mixed(moves))

    def _mixed(self, moves: Sequence[_Move]) -> QuantizedModel:
        """A copy of the model with the moves made."""
        network = copy.deepcopy(self.model.network)
        mixed = dataclasses.replace(self.model, network=network, metadata=dict(self.model.metadata))
        for move in _latest(moves):
            layer = self.network.get_submodule(move.layer) if move.wide is None else move.wide
            replace_layer(mixed.network, move.layer, copy.deepcopy(layer))
        mixed.network.eval().requires_grad_(False)
        return mixed
