"""Plain quantization-aware training: fixed ranges and straight-through rounding, nothing learned but the weights.

The control that shows what learnable ranges are worth. Activation ranges come from calibration and stay; the weight
range is max|W| now (Jacob et al., CVPR 2018, Sec. 3.1, without their moving averages). Static and exportable.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.methods.base import Method
from training.quantizers.base import ActivationQuantizer, Quantizable, WeightQuantizer
from training.quantizers.learnable_range import LearnableRange, RangeInit
from training.quantizers.weights import LargestWeight


@dataclass(frozen=True)
class MinMaxOptions:
    """Settings of plain quantization-aware training."""

    per_channel: bool = True
    """One weight scale per output channel rather than per layer."""
    range_init: RangeInit = "minmax"
    """How activation ranges are chosen."""
    range_percentile: float = 99.9
    """With range_init = "percentile"."""


class MinMax(Method[MinMaxOptions]):
    """Plain quantization-aware training; see the module's docstring."""

    name = "minmax"
    Options = MinMaxOptions

    def activation_quantizer(self, bits: int, layer: Quantizable) -> ActivationQuantizer:
        """A range that calibration fixes."""
        quantizer = LearnableRange(bits, init=self.options.range_init, percent=self.options.range_percentile)
        return quantizer.requires_grad_(False)

    def weight_quantizer(self, bits: int, layer: Quantizable) -> WeightQuantizer:
        """The largest weight is the range."""
        return LargestWeight(bits, per_channel=self.options.per_channel)
