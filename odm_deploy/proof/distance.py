"""How far two programs' images are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from odm_deploy.errors import InputError
from odm_deploy.imaging.pairs import Rgb


@dataclass
class Distance:
    """How far the 8-bit outputs of two programs are apart, over all images so far."""

    values: int = 0
    """Colour values compared."""
    differing: int = 0
    max_lsb: int = 0
    """Largest difference, in 8-bit steps."""
    squared: float = 0.0

    def add(self, a: Rgb, b: Rgb) -> None:
        """Count one pair of images.

        Raises:
            InputError: images of different size.
        """
        if a.shape != b.shape:
            raise InputError("the outputs cannot be compared", why=f"shapes {a.shape} and {b.shape}")
        difference = np.abs(a.astype(np.int16) - b)
        self.values += difference.size
        self.differing += int((difference > 0).sum())
        self.max_lsb = max(self.max_lsb, int(difference.max(initial=0)))
        self.squared += float(np.square(difference.astype(np.int64)).sum())

    @property
    def identical(self) -> float:
        """Share of identical colour values."""
        return 1.0 - self.differing / self.values if self.values else 1.0

    @property
    def psnr_db(self) -> float:
        """PSNR between the two, dB; infinite when identical."""
        return 10.0 * math.log10(255.0**2 * self.values / self.squared) if self.squared else math.inf

    def to_dict(self) -> dict[str, Any]:
        """The keys of `verify --json`."""
        return {"identical_pixels": self.identical, "max_lsb": self.max_lsb, "psnr_between_db": self.psnr_db}
