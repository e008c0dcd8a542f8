"""Which profile a network gets where the fastest one is asked for whose loss nobody sees.

`integer` is the fastest on every runtime, and its 8-bit sums cost a little everywhere; `deploy` keeps sums in float.
The first is calibrated and judged on the held-back images; only where it loses too much, the second is calibrated, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from odm_deploy.grid import MAX_BITS
from odm_deploy.quantization.model import QuantizedModel, freeze
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.tuning.goals import Goal
from odm_deploy.tuning.held_back import HeldBack, OutputCost
from odm_deploy.tuning.tune import Calibrated

FASTEST = "fastest"
"""What stands for the choice where a profile is named."""
CHOICES = ("integer", "deploy")
"""Profiles that are tried, fastest first."""
UNSEEN_DB = 0.03
"""Loss against the truth that nobody sees."""
UNSEEN_PSNR_DB = 48.0
"""The same between float and quantized output, where there is no truth: more than the 45 from which on nobody sees it,
because other images differ."""
SIGNALS_PSNR_DB = 0.2
"""What signals may cost of the PSNR between both outputs in models of fewer bits, where there is no truth."""


@dataclass(frozen=True)
class ProfileChoice:
    """A profile, what calibration made with it, and why it was taken."""

    profile: str
    policy: QuantizationPolicy
    calibrated: Calibrated
    why: str
    """Half a sentence; empty where there was no choice."""
    missed: tuple[tuple[ProfileChoice, OutputCost], ...] = ()
    """Faster ones that lost too much, and what they cost."""

    def faster_and_as_good(self, cost: OutputCost) -> ProfileChoice | None:
        """The fastest of those passed over that loses no more, by either measure, than this one did in the end.

        Args:
            cost: of this profile's model, tuned.
        """
        for choice, other in self.missed:
            drop, wanted = other.expected_drop_db, cost.expected_drop_db
            as_near = drop is None or wanted is None or drop <= wanted
            if as_near and other.psnr_db >= cost.psnr_db:
                why = f"{self.profile} is no better in the end: {_words(cost)}"
                return dataclasses.replace(choice, why=why)
        return None


def choose_profile(
    policies: Mapping[str, QuantizationPolicy],
    calibrate: Callable[[str], Calibrated],
    held_back: HeldBack,
    goal: Goal | None = None,
) -> ProfileChoice:
    """The first profile whose model keeps the goal, or the last one.

    Args:
        policies: what each profile quantizes, fastest first.
        calibrate: makes the model of one of them.
        held_back: images to judge by.
        goal: what has to be kept; None: what nobody sees, or in models of fewer than 8 bits, which lose more anyhow,
            that signals add nothing that one sees.

    Raises:
        UsageError: as `Goal.check`.
    """
    if goal is not None:
        goal.check(with_truth=held_back.has_truth)
    *tried, last = policies
    missed: list[tuple[ProfileChoice, OutputCost]] = []
    for name in tried:
        found = calibrate(name)
        cost = held_back.measure(found[0])
        kept, words = _judged(found[0], cost, policies[name], held_back, goal)
        choice = ProfileChoice(name, policies[name], found, words)
        if kept:
            return choice
        missed.append((choice, cost))
    why = " and ".join(f"with {choice.profile} {choice.why}" for choice, _ in missed)
    return ProfileChoice(last, policies[last], calibrate(last), why, tuple(missed))


def _judged(
    model: QuantizedModel, cost: OutputCost, policy: QuantizationPolicy, held_back: HeldBack, goal: Goal | None
) -> tuple[bool, str]:
    """Whether a model is good enough, and the figures in words."""
    widths = (policy.body, policy.body_end, policy.tail, policy.head, *policy.overrides.values())
    narrow = any(bits is not None and min(bits.weight, bits.activation) < MAX_BITS for bits in widths)
    if goal is None and narrow:
        return _adds_little(cost, held_back.measure(freeze(model.network, {}, signals={})))
    if goal is None:
        goal = Goal(min_psnr_db=UNSEEN_PSNR_DB) if cost.drop_db is None else Goal(max_drop_db=UNSEEN_DB)
    if misses := goal.misses(cost):
        return False, " and ".join(misses)
    return True, _words(cost)


def _words(cost: OutputCost) -> str:
    if cost.drop_db is None:
        return f"{cost.psnr_db:.1f} dB between float and quantized output"
    return f"it loses {cost.drop_db:.3f} dB"


def _adds_little(cost: OutputCost, without: OutputCost) -> tuple[bool, str]:
    """Whether a model of few bits is about as good as it is without signals."""
    if cost.drop_db is None or without.drop_db is None:
        added = without.psnr_db - cost.psnr_db
        return added <= SIGNALS_PSNR_DB, f"8-bit sums cost {added:.2f} dB between float and quantized output"
    added = cost.drop_db - without.drop_db
    return added <= UNSEEN_DB, f"8-bit sums cost {added:.3f} dB"
