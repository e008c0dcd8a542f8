"""When people see the difference between two pictures. Needs no heavy package: commands that prove nothing ask, too."""

from __future__ import annotations

INVISIBLE_DB = 45.0
"""PSNR between two pictures from which on their difference drowns in the noise of any camera: 1.4 steps on average."""
INVISIBLE_STEPS = 16
"""Largest difference of a single value, in 8-bit steps, that is still lost in detail."""
HARDLY_VISIBLE_DB = 35.0
"""From here on (4.5 steps on average) people find differences only by switching between the pictures."""


def visibility(psnr_db: float, largest: int) -> str:
    """Whether people see the difference between two pictures: `invisible`, `hardly visible` or `visible`.

    Args:
        psnr_db: PSNR between the two.
        largest: largest difference of a value, in 8-bit steps.
    """
    if psnr_db >= INVISIBLE_DB and largest <= INVISIBLE_STEPS:
        return "invisible"
    return "hardly visible" if psnr_db >= HARDLY_VISIBLE_DB else "visible"
