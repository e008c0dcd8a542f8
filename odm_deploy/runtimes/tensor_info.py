"""What a model says about its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odm_deploy.bundle.image_format import ImageFormat
from odm_deploy.errors import InputError
from odm_deploy.runtimes.dlpack import BorrowedTensor

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a model."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    """One entry a dimension; None where the model leaves it open."""

    stated: ImageFormat | None = None
    """How images lie in it, where the bundle's manifest says so."""

    @property
    def images(self) -> ImageFormat:
        """How images lie in it: as stated, else what can be told from the tensor itself."""
        return self.stated or ImageFormat.told_from(self.name, self.dtype, self.shape)

    def check(self, array: Array | BorrowedTensor) -> None:
        """Raise InputError when `array` has another dtype, rank or fixed dimension than this tensor."""
        fits = len(array.shape) == len(self.shape) and all(
            want in (None, got) for want, got in zip(self.shape, array.shape, strict=True)
        )
        if array.dtype != self.dtype or not fits:
            shape = "x".join("?" if size is None else str(size) for size in self.shape)
            raise InputError(
                f"input {self.name!r} does not fit the model",
                why=f"it is {array.dtype} {'x'.join(map(str, array.shape))}, the model takes {self.dtype} {shape}",
            )
