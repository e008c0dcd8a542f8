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

    def __post_init__(self) -> None:
        if self.max_drop_db is None and self.min_psnr_db is None:
            raise UsageError("no goal for mixed widths", fix="give --max-drop or --min-psnr")
        if not (self.max_drop_db or 0.0) >= 0.0:
            raise UsageError(f"--max-drop {self.max_drop_db:g}", why="a loss is not negative", fix="write 0.05, say")
        if math.isnan(self.min_psnr_db or 0.0):
            raise UsageError("--min-psnr nan", why="nothing is larger than that", fix="write 45, say")

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


def default_goal(policy: QuantizationPolicy, float_share: float, *, with_truth: bool) -> Goal | None:
    """What a model at 8 bits strives for where nobody says anything: a loss that nobody sees.

    None where fewer bits were asked for, which lose more anyhow, where widths were chosen layer by layer, where float
    layers are not allowed, and at a share of nothing.

    Args:
        policy: what is quantized.
        float_share: how much may become float, 0 to 1.
        with_truth: whether a loss against the truth can be measured.
    """
    narrow = min(policy.body.weight, policy.body.activation) < MAX_BITS
    if narrow or policy.overrides or policy.power_of_two or policy.signals is not None or not float_share:
        return None
    if with_truth:
        return Goal(max_drop_db=STRIVEN_FOR_DB, float_share=float_share)
    return Goal(min_psnr_db=STRIVEN_FOR_PSNR_DB, float_share=float_share)
