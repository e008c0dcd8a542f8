"""DDTB (Zhong et al., ECCV 2022): "Dynamic Dual Trainable Bounds for Ultra-low Precision Super-Resolution Networks".

Activations: trainable bounds (l, u), zero snapped to a level, started at percentiles of the first batch. The
`gate_share` of layers whose extremes vary most between images (var(max) + var(min)) get a gate that scales both bounds
per image: GAP -> 2-bit 1x1 conv C->32 -> BN -> ReLU -> 2-bit 1x1 conv 32->2 -> 2 sigmoid = (b_u, b_l). Until
`gate_start` the bounds are static and mean(logit^2) draws the gates to one. Weights: asymmetric between percentiles.
Recipes give l and u the learning rate 1e-2.

Dynamic where gated. Static and exportable with `gate_share = 0`, or with `remove_gates`: bounds are then scaled by what
the gates said on average, once training is over, and the run tells what that cost. The official code calibrates at
2 bits only (other widths start at +-10) and leaves conv1 of each block unquantized; neither is reproduced.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.quantization.straight_through.range import range_quantize
from training.methods.base import Method, Step
from training.model import TrainableModel
from training.quantizers.base import ActivationQuantizer, Quantizable, SavedFlag, WeightQuantizer, needs_channel_axis
from training.quantizers.learnable_range import LearnableRange
from training.quantizers.weights import PercentileWeight

GATE_BITS = 2
GATE_FEATURES = 32
_MEMORY = 0.01  # weight of the latest batch in the mean factors
WHY_NOT = "gated layers compute their range from each image; a model.pt holds static grids"


@dataclass(frozen=True)
class DdtbOptions:
    """Settings of DDTB; the defaults are the official code's for EDSR."""

    gate_share: float = 0.3
    """Share of layers with a gate: 0.3 EDSR, 0.1 SRResNet, 0.5 RDN. 0: none, and exportable."""
    gate_start: int = 5000
    """Iterations before the gates act; the official code waits five epochs of 1000."""
    range_percentile: float = 99.0
    """Percentile the bounds start at; 95 for RDN."""
    weight_percentile: float = 99.0
    """Percentile that bounds the weights; 100 (the extremes) for RDN."""
    remove_gates: bool = False
    """Replace the gates by their mean factors when the run is frozen. May be set on a run that is done, with
    `--finish`."""


class Ddtb(Method[DdtbOptions]):
    """DDTB; see the module's docstring."""

    name = "ddtb"
    Options = DdtbOptions

    def activation_quantizer(self, bits: int, layer: Quantizable) -> ActivationQuantizer:
        """Trainable bounds, with a gate where `initialize` puts one."""
        return GatedRange(
            bits, needs_channel_axis(layer, "DDTB's gate").in_channels, percent=self.options.range_percentile
        )

    def weight_quantizer(self, bits: int, layer: Quantizable) -> WeightQuantizer:
        """Percentiles of W."""
        return PercentileWeight(bits, percent=self.options.weight_percentile)

    def initialize(self, model: TrainableModel) -> None:
        """Bounds, and gates for the layers whose extremes vary most."""
        super().initialize(model)
        ranges = _gated_ranges(model)
        count = round(self.options.gate_share * len(ranges))
        for quantizer in sorted(ranges, key=lambda q: q.extreme_variance, reverse=True)[:count]:
            quantizer.has_gate.set(True)

    def begin_iteration(self, model: TrainableModel, iteration: int) -> None:
        """Open the gates once their warm-up is over."""
        for quantizer in _gated_ranges(model):
            quantizer.gate_acts.set(self.operations(iteration))

    def operations(self, iteration: int) -> bool:
        """Whether gates act."""
        return iteration >= self.options.gate_start

    def reconstruction_loss(self, step: Step) -> Tensor:
        """L1, and during the gates' warm-up mean(logit^2)."""
        loss = super().reconstruction_loss(step)
        if self.operations(step.iteration):
            return loss
        logits = [quantizer.take_logits() for quantizer in _gated_ranges(step.model) if quantizer.has_gate.is_set]
        return loss + torch.stack([logit.square().mean() for logit in logits]).mean() if logits else loss

    def why_not_exportable(self) -> str | None:
        """Gates."""
        if self.options.remove_gates or not self.options.gate_share:
            return None
        return f"{WHY_NOT}; set method.remove_gates=true and see what it costs, or train with method.gate_share=0"

    def simplify(self, model: TrainableModel) -> str:
        """Replace the gates by their mean factors, if asked to."""
        gated = [quantizer for quantizer in _gated_ranges(model) if quantizer.has_gate.is_set]
        if not self.options.remove_gates or not gated:
            return ""
        for quantizer in gated:
            quantizer.remove_gate()
        return f"the gates of {len(gated)} layers became constants"


class GatedRange(LearnableRange):
    """Trainable bounds that a gate may scale per image."""

    mean_factors: Tensor

    def __init__(self, bits: int, channels: int, *, percent: float) -> None:
        super().__init__(bits, percent=percent)
        self.gate = Gate(channels)
        self.has_gate = SavedFlag(False)
        self.gate_acts = SavedFlag(False)
        # (b_u, b_l), averaged over recent training images.
        self.register_buffer("mean_factors", torch.ones(2))
        self._logits: Tensor | None = None
        self._extremes: list[tuple[Tensor, Tensor]] = []

    @property
    def extreme_variance(self) -> float:
        """var(max) + var(min) over the images observed."""
        lowest, highest = (torch.cat(values) for values in zip(*self._extremes, strict=True))
        return (highest.var(correction=0) + lowest.var(correction=0)).item()

    def observe(self, x: Tensor) -> None:
        """The first batch sets the bounds; all of them tell how extremes vary."""
        lowest, highest = torch.aminmax(x.detach().float().flatten(1), dim=1)
        if not self._extremes:
            super().observe(x)
        self._extremes.append((lowest, highest))

    def forward(self, x: Tensor) -> Tensor:
        """Levels of `x`."""
        if not self.has_gate.is_set:
            return super().forward(x)
        logits: Tensor = self.gate(x.float())
        if not self.gate_acts.is_set:
            self._logits = logits
            return super().forward(x)
        lower, upper = self.range
        factors = 2.0 * torch.sigmoid(logits)
        if self.training:
            self.mean_factors.lerp_(factors.detach().mean(0), _MEMORY)
        upper_factor, lower_factor = factors.reshape(-1, 2, 1, 1, 1).unbind(1)
        return range_quantize(x, lower * lower_factor, upper * upper_factor, self.bits)

    @torch.no_grad()
    def remove_gate(self) -> None:
        """Scale the bounds by the mean factors, once and for all."""
        upper_factor, lower_factor = self.mean_factors
        self.upper.mul_(upper_factor)
        self.lower.mul_(lower_factor)
        self.has_gate.set(False)

    def take_logits(self) -> Tensor:
        """The gate's output in the latest forward while it did not act yet; [N, 2]. Not kept any longer."""
        logits, self._logits = self._logits, None
        assert logits is not None, "nothing passed this gate"
        return logits

    def grid(self) -> Grid:
        """The static grid.

        Raises:
            InputError: a gate makes it dynamic.
        """
        if self.has_gate.is_set:
            raise InputError(
                "not a static grid", why=WHY_NOT, fix="set method.remove_gates=true, or train with method.gate_share=0"
            )
        return super().grid()


class Gate(nn.Module):
    """Logits of (b_u, b_l) from an image's features: float32 [N, C, H, W] -> [N, 2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, GATE_FEATURES, bias=False)
        self.normalize = nn.BatchNorm1d(GATE_FEATURES)
        self.excite = nn.Linear(GATE_FEATURES, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pool and apply the two 2-bit layers (1x1 convolutions of a pooled image are linear)."""
        hidden = F.relu(self.normalize(_low_bit_linear(x.mean(dim=(2, 3)), self.squeeze.weight)))
        return _low_bit_linear(hidden, self.excite.weight)


def _low_bit_linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(_between_extremes(x), _between_extremes(weight))


def _between_extremes(x: Tensor) -> Tensor:
    """2-bit levels between the extremes of now, which are held fixed."""
    lower, upper = torch.aminmax(x.detach())
    lower, upper = lower.clamp(max=0.0), upper.clamp(min=0.0)
    return range_quantize(x, lower, torch.maximum(upper, lower + 1e-8), GATE_BITS)


def _gated_ranges(model: TrainableModel) -> list[GatedRange]:
    quantizers = [layer.activation for layer in model.layers.values()]
    return [quantizer for quantizer in quantizers if isinstance(quantizer, GatedRange)]
