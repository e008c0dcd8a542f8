"""No quantization: the float network trained just as long, so that longer training is not mistaken for a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from odm_deploy.errors import UsageError
from training.methods.base import Method
from training.quantizers.base import Quantizable


@dataclass(frozen=True)
class FloatOptions:
    """The control has no settings."""


class FloatControl(Method[FloatOptions]):
    """Fine-tunes the float network; ends in weights.pt instead of model.pt."""

    name = "float"
    Options = FloatOptions
    quantizes = False

    def activation_quantizer(self, bits: int, layer: Quantizable) -> NoReturn:
        """Raises UsageError: there is none, nor one of weights."""
        raise UsageError("the float control quantizes nothing")

    weight_quantizer = activation_quantizer
