"""What a quantized model has to keep, or strives for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from odm_deploy.errors import UsageError
from odm_deploy.grid import MAX_BITS
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.tuning.held_back import OutputCost

STRIVEN_FOR_DB = 0.015
"""Loss against the truth that a model at 8 bits strives for: half of what shows. For where the float network is
closer to the truth than on the held-back images, the same error costs up to twice as many decibels."""
STRIVEN_FOR_PSNR_DB = 50.0
"""The same between float and quantized output, where there is no truth."""
ACCEPTED_DB = 0.02
"""Where a model strives in vain, an expected loss that is not worth `MOST_FLOAT`; with more, it is."""
LOST_DB = STRIVEN_FOR_DB / 2
"""But not where the images in fact lose less than this: those of networks that were trained with an adversary lose
nothing, whatever their error makes expect."""
FLOAT, MOST_FLOAT = 0.3, 0.5
"""Shares of multiply-adds that may become float for the one and for the other."""


@dataclass(frozen=True)
class Goal:
    """What a quantized model has to keep; at least one of the two.

    Raises:
        UsageError: neither, or figures that mean nothing.
    """

    max_drop_db: float | None = None
    """Largest loss of PSNR-Y against the truth that is to be expected (`OutputCost.expected_drop_db`), dB."""
    min_psnr_db: float | None = None
    """Smallest PSNR between float and quantized output, dB."""
    float_share: float | None = None
    """The largest share of multiply-adds, 0 to 1, that may become float for it: the goal is only striven for then.
    None: it is kept at any price, or refused."""
    otherwise: Goal | None = None
    """What is striven for where that share is too small: an easier goal, for which more may become float."""

    def __post_init__(self) -> None:
        if self.max_drop_db is None and self.min_psnr_db is None:
            raise UsageError("no goal for mixed widths", fix="give --max-drop or --min-psnr")
        if not (self.max_drop_db or 0.0) >= 0.0:
            raise UsageError(f"--max-drop {self.max_drop_db:g}", why="a loss is not negative", fix="write 0.05, say")
        if math.isnan(self.min_psnr_db or 0.0):
            raise UsageError("--min-psnr nan", why="nothing is larger than that", fix="write 45, say")

    def asks_for_more(self, cost: OutputCost) -> bool:
        """Whether a cost calls for what is striven for `otherwise`."""
        lost = cost.drop_db is None or cost.drop_db > LOST_DB
        return self.otherwise is not None and lost and bool(self.otherwise.misses(cost))

    def check(self, *, with_truth: bool) -> None:
        """Refuse images that cannot be judged by, before any work on them.

        Args:
            with_truth: whether a loss against the truth can be measured.

        Raises:
            UsageError: a limit on the loss, but no truth to measure it.
        """
        if self.max_drop_db is not None and not with_truth:
            raise UsageError(
                "--max-drop cannot be measured",
                why="the images are network inputs, so there is no truth to lose against",
                fix="use --min-psnr; with a network that enlarges, images of high resolution without --lr do, too",
            )

    def misses(self, cost: OutputCost) -> list[str]:
        """What is not kept, in words; empty where all is."""
        found: list[str] = []
        drop = cost.expected_drop_db
        if self.max_drop_db is not None and drop is not None and not drop <= self.max_drop_db:
            found.append(f"it loses {drop:.3f} dB (allowed: {self.max_drop_db:g} dB)")
        if self.min_psnr_db is not None and not cost.psnr_db >= self.min_psnr_db:
            found.append(f"its output is {cost.psnr_db:.2f} dB from float's (required: {self.min_psnr_db:g} dB)")
        return found


def default_goal(policy: QuantizationPolicy, float_share: float | None, *, with_truth: bool) -> Goal | None:
    """What a model at 8 bits strives for where nobody says anything: a loss that nobody sees.

    None where fewer bits were asked for, which lose more anyhow, where widths were chosen layer by layer, where float
    layers are not allowed, and at a share of nothing.

    Args:
        policy: what is quantized.
        float_share: how much may become float, 0 to 1; None: `FLOAT`, or `MOST_FLOAT` where it shows otherwise.
        with_truth: whether a loss against the truth can be measured.
    """
    narrow = min(policy.body.weight, policy.body.activation) < MAX_BITS
    if narrow or policy.overrides or policy.power_of_two or policy.signals is not None or float_share == 0:
        return None
    if not with_truth:
        return Goal(min_psnr_db=STRIVEN_FOR_PSNR_DB, float_share=FLOAT if float_share is None else float_share)
    if float_share is not None:
        return Goal(max_drop_db=STRIVEN_FOR_DB, float_share=float_share)
    more = Goal(max_drop_db=ACCEPTED_DB, float_share=MOST_FLOAT)
    return Goal(max_drop_db=STRIVEN_FOR_DB, float_share=FLOAT, otherwise=more)
