"""ODM v1 (Hong and Lee, arXiv 2307.13337), the first version of ODM.

- Activations: learnable range (l, u) per layer, started at percentiles (Eqs. 1-2).
- Weights: range fixed at the 1st and 99th percentile of W, recomputed every forward.
- Variance regularisation L_V = lambda_V * sum_i sigma(X_i), added per scalar parameter only where it does not oppose
  the reconstruction: g_R * g_V >= 0 (the cooperative rule; lambda_V is in a lost supplement).
- Selective offsets: the top p of layers by m_mu = std_c(mean_c(X)) learn a per-channel shift, the top p by m_sigma =
  std_c(std_c(X)) a per-channel scale; X* = (X + shift) * scale goes to quantizer and convolution, without an inverse.
  The offsets themselves are 4-bit symmetric, max|s| / 7.
- L_R = L1 + 1000 L_SKT.

In a frozen layer the offsets are two constants in front of the quantizer.

By default zero is a level of both grids and ranges and offsets follow the reconstruction only, as in ODM v2. The paper
to the letter is `free`, `free_weights` and `regularize_ranges`: Eqs. 1 and 2 have no zero, and Eq. 5 moves every
parameter by the sign rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odm_deploy.accounting import FLOAT_BITS
from odm_deploy.quantization.layers import OFFSET_BITS, ChannelOffsets
from odm_deploy.quantization.straight_through.symmetric import symmetric_codes, symmetric_quantize
from training.losses.cooperative import combine_cooperatively, combine_naively
from training.losses.features import variance_loss
from training.methods.base import Step, TransferMethod, TransferOptions
from training.model import TrainableModel
from training.quantizers.base import ActivationQuantizer, Kind, Overhead, Quantizable, SavedFlag, WeightQuantizer
from training.quantizers.channels import ChannelAxis
from training.quantizers.learnable_range import LearnableRange, RangeInit
from training.quantizers.weights import PercentileWeight


@dataclass(frozen=True)
class OdmV1Options(TransferOptions):
    """Settings of ODM v1; the defaults are the paper's where it gives them."""

    variance_weight: float = 1e-3
    """lambda_V, for features in units of the 0..255 image; the paper's value is lost."""
    cooperative: bool = True
    """Add g_V only where it agrees with g_R; false: always (the papers' naive ablation)."""
    regularize_ranges: bool = False
    """Ranges and offsets follow the sign rule, too (Eq. 5); false: weights alone do."""
    free: bool = False
    """Eq. 1 to the letter: l is a level of the activations and zero need not be one. Layers with offsets pad with the
    level nearest to zero behind them."""
    free_weights: bool = False
    """Eq. 2 to the letter: the same for weights. Their levels are then no multiples of a scale: not exportable."""
    offset_share: float = 0.3
    """p: layers beyond the (1 - p) quantile of m_mu get shifts, those beyond that of m_sigma scales. 0: none."""
    weight_percentile: float = 99.0
    """Percentile that bounds the weights; 100 - p bounds them below."""
    range_init: RangeInit = "percentile"
    """How activation ranges start."""
    range_percentile: float = 99.0
    """Percentile they start at, with range_init = "percentile"."""


class OdmV1(TransferMethod[OdmV1Options]):
    """ODM v1; see the module's docstring."""

    name = "odm_v1"
    Options = OdmV1Options
    records_features = True
    auxiliary_name = "variance"

    def __init__(self, options: OdmV1Options) -> None:
        super().__init__(options)
        self.auxiliary_weight = options.variance_weight
        self.auxiliary_moves_quantizers = options.regularize_ranges

    def activation_quantizer(self, bits: int, layer: Quantizable) -> ActivationQuantizer:
        """A learnable range, with offsets where `initialize` puts them."""
        return OffsetRange(
            bits,
            ChannelAxis.of(layer),
            init=self.options.range_init,
            percent=self.options.range_percentile,
            free=self.options.free,
        )

    def weight_quantizer(self, bits: int, layer: Quantizable) -> WeightQuantizer:
        """Percentiles of W."""
        return PercentileWeight(bits, percent=self.options.weight_percentile, free=self.options.free_weights)

    def why_not_exportable(self) -> str | None:
        """Free weights, and offsets before free grids."""
        if self.options.free_weights:
            return "weights on a free range have levels that are no multiples of a scale"
        if self.options.free and self.options.offset_share:
            return "offsets in front of a free grid, whose border is not a level"
        return None

    def initialize(self, model: TrainableModel) -> None:
        """Ranges, and offsets for the layers whose channels differ most."""
        super().initialize(model)
        quantizers = [layer.activation for layer in model.layers.values()]
        offset_ranges = [quantizer for quantizer in quantizers if isinstance(quantizer, OffsetRange)]
        share = self.options.offset_share
        by_mean = _in_top([quantizer.mean_spread for quantizer in offset_ranges], share)
        by_deviation = _in_top([quantizer.deviation_spread for quantizer in offset_ranges], share)
        for quantizer, shifted, scaled in zip(offset_ranges, by_mean, by_deviation, strict=True):
            quantizer.has_shift.set(shifted)
            quantizer.has_gain.set(scaled)

    def auxiliary_loss(self, step: Step) -> Tensor:
        """sum_i sigma(X_i); averaged over processes, each taking its own part of the batch."""
        return variance_loss(step.model.records()) / step.world.size

    def combine(self, reconstruction: dict[str, Tensor], auxiliary: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sign rule."""
        if not self.options.cooperative:
            return combine_naively(reconstruction, auxiliary, self.auxiliary_weight)
        return combine_cooperatively(reconstruction, auxiliary, self.auxiliary_weight, "element")


class OffsetRange(LearnableRange):
    """A learnable range behind optional per-channel shift and gain."""

    def __init__(self, bits: int, channels: ChannelAxis, *, init: RangeInit, percent: float, free: bool) -> None:
        super().__init__(bits, init=init, percent=percent, free=free)
        self.channels = channels
        self.shift = nn.Parameter(torch.zeros(channels.count))
        self.gain = nn.Parameter(torch.ones(channels.count))
        self.has_shift = SavedFlag(False)
        self.has_gain = SavedFlag(False)
        self.mean_spread = 0.0
        self.deviation_spread = 0.0

    def kind_of(self, parameter: str) -> Kind:
        """An offset, or a bound."""
        return "offsets" if parameter in ("shift", "gain") else super().kind_of(parameter)

    def observe(self, x: Tensor) -> None:
        """Range and, from the first batch, how much the channels differ: m_mu and m_sigma."""
        if not self._batches:
            everything = self.channels.all_but_channels(x)
            deviations, means = torch.std_mean(x.detach().float(), dim=everything, correction=0)
            self.mean_spread, self.deviation_spread = means.std().item(), deviations.std().item()
        super().observe(x)

    def transform(self, x: Tensor) -> Tensor:
        """X* = (X + shift) * gain."""
        x = x.float()
        if self.has_shift.is_set:
            x = x + self.channels.shaped(quantized_offset(self.shift))
        if self.has_gain.is_set:
            x = x * self.channels.shaped(quantized_offset(self.gain))
        return x

    def overhead(self, pixels: int) -> Overhead:
        """Codes of shift and gain, and the gain's multiplications."""
        count, shifts, gains = self.channels.count, self.has_shift.is_set, self.has_gain.is_set
        return Overhead(
            storage_bits=(shifts + gains) * count * OFFSET_BITS,
            scales=shifts + gains,
            bit_operations=gains * count * pixels * OFFSET_BITS * FLOAT_BITS,
        )

    def offsets(self) -> ChannelOffsets | None:
        """Shift and gain on their 4-bit levels, where the layer has them."""
        if not (self.has_shift.is_set or self.has_gain.is_set):
            return None
        (shift, shift_step), (gain, gain_step) = (
            _coded(offset.detach().cpu()) if is_set else (None, None)
            for offset, is_set in ((self.shift, self.has_shift.is_set), (self.gain, self.has_gain.is_set))
        )
        return ChannelOffsets(shift, gain, shift_step, gain_step)


def _in_top(values: list[float], share: float) -> list[bool]:
    """Which values are beyond the (1 - share) quantile; all of them for a share of 1."""
    if share >= 1.0 or not values:
        return [share > 0.0] * len(values)
    threshold = torch.tensor(values).quantile(1.0 - share).item()
    return [value > threshold for value in values]


def quantized_offset(offset: Tensor) -> Tensor:
    """4-bit symmetric offsets on the range of their largest magnitude, rounding passed straight through."""
    return symmetric_quantize(offset, _bound(offset), OFFSET_BITS, mid_rise=False)


def _coded(offset: Tensor) -> tuple[Tensor, float]:
    """The same without a gradient, and the step."""
    codes, step = symmetric_codes(offset, _bound(offset), OFFSET_BITS, mid_rise=False)
    return codes * step, step.item()


def _bound(offset: Tensor) -> Tensor:
    return offset.detach().abs().amax().clamp(min=1e-8)
