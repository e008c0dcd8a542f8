"""DDTB (Zhong et al., ECCV 2022): "Dynamic Dual Trainable Bounds for Ultra-low Precision Super-Resolution Networks".

Activations: trainable bounds (l, u), zero snapped to a level, started at percentiles of the first batch. The
`gate_share` of layers whose extremes vary most between images (var(max) + var(min)) get a gate that scales both bounds
per image: GAP -> 2-bit 1x1 conv C->32 -> BN -> ReLU -> 2-bit 1x1 conv 32->2 -> 2 sigmoid = (b_u, b_l). Gates read the
features without passing a gradient back into them, their weights are ternary (max|W| is the range), and the quantizer
between their two layers passes none either, so that only the second layer learns (`whole_gate`). Until `gate_start` the
bounds are static and mean(logit^2) draws the gates to one. Weights: asymmetric between percentiles. Loss: L1 + 1000
L_SKT. Recipes give l and u the learning rate 1e-2; gates have that of the weights.

Dynamic where gated, and exported as such: engines compute a gated layer's step from each image, divide by it before an
integer convolution and multiply after it (`odm_deploy.quantization.gates`). Static with `gate_share = 0`, or with
`remove_gates`: bounds are then scaled by what the gates said on average, once training is over, and the run tells what
that cost. The official code calibrates at 2 bits only (other widths start at +-10), leaves conv1 of each block
unquantized, and cannot train on a batch of one (batch normalisation); none of that is reproduced. A single image is
normalised with the running statistics. Its codes are not clamped, so that where both bounds round outwards there is a
level more than 2^b; here there never is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odm_deploy.accounting import FLOAT_BITS
from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.progress import counted
from odm_deploy.quantization.gates import FrozenGate
from odm_deploy.quantization.straight_through.range import range_quantize
from training.methods.base import Step, TransferMethod, TransferOptions
from training.model import TrainableModel
from training.quantizers.base import (
    ActivationQuantizer,
    Kind,
    Overhead,
    Quantizable,
    SavedFlag,
    WeightQuantizer,
    straight_through,
)
from training.quantizers.channels import ChannelAxis
from training.quantizers.learnable_range import LearnableRange
from training.quantizers.weights import PercentileWeight

GATE_BITS = 2
GATE_FEATURES = 32
_MOST_BITS = 7
_SMALLEST_WIDTH = 1e-8
_MEMORY = 0.01  # weight of the latest batch in the mean factors
_NOT_STATIC = "a gate computes its range from each image"


@dataclass(frozen=True)
class DdtbOptions(TransferOptions):
    """Settings of DDTB; the defaults are the official code's for EDSR."""

    gate_share: float = 0.3
    """Share of layers with a gate, rounded down: 0.3 EDSR, 0.1 SRResNet, 0.5 RDN. 0: none, and all ranges static."""
    gate_start: int = 4000
    """Iterations before the gates act: epochs 2 to 5 of the official code, whose first epoch only calibrates."""
    whole_gate: bool = False
    """Pass gradients through the quantizer inside a gate, so that its first layer and normalisation learn, too; the
    official code does not."""
    range_percentile: float = 99.0
    """Percentile the bounds start at; 95 for RDN."""
    weight_percentile: float = 99.0
    """Percentile that bounds the weights; 100 (the extremes) for RDN."""
    remove_gates: bool = False
    """Replace the gates by their mean factors when the run is frozen. May be set on a run that is done, with
    `--finish`."""


class Ddtb(TransferMethod[DdtbOptions]):
    """DDTB; see the module's docstring."""

    name = "ddtb"
    Options = DdtbOptions
    at_weights_rate = frozenset[Kind]({"gates"})

    def activation_quantizer(self, bits: int, layer: Quantizable) -> ActivationQuantizer:
        """Trainable bounds, with a gate where `initialize` puts one."""
        o = self.options
        if bits > _MOST_BITS and o.gate_share and not o.remove_gates:
            raise InputError(
                f"no gates at {bits} bits",
                why="codes of a gated layer take a bit more, and engines have 8",
                fix="set method.gate_share=0 or method.remove_gates=true",
            )
        return GatedRange(bits, ChannelAxis.of(layer), percent=o.range_percentile, whole_gate=o.whole_gate)

    def weight_quantizer(self, bits: int, layer: Quantizable) -> WeightQuantizer:
        """Percentiles of W."""
        return PercentileWeight(bits, percent=self.options.weight_percentile)

    def initialize(self, model: TrainableModel) -> None:
        """Bounds, and gates for the layers whose extremes vary most."""
        super().initialize(model)
        ranges = _gated_ranges(model)
        count = int(self.options.gate_share * len(ranges))
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
        """L1 + 1000 L_SKT, and during the gates' warm-up mean(logit^2)."""
        loss = super().reconstruction_loss(step)
        if self.operations(step.iteration):
            return loss
        logits = [quantizer.take_logits() for quantizer in _gated_ranges(step.model) if quantizer.has_gate.is_set]
        return loss + torch.stack([logit.square().mean() for logit in logits]).mean() if logits else loss

    def simplify(self, model: TrainableModel) -> str:
        """Replace the gates by their mean factors, if asked to."""
        gated = [quantizer for quantizer in _gated_ranges(model) if quantizer.has_gate.is_set]
        if not self.options.remove_gates or not gated:
            return ""
        for quantizer in gated:
            quantizer.remove_gate()
        return f"the gates of {counted(len(gated), 'layer')} became constants"


class GatedRange(LearnableRange):
    """Trainable bounds that a gate may scale per image."""

    mean_factors: Tensor

    def __init__(self, bits: int, channels: ChannelAxis, *, percent: float, whole_gate: bool) -> None:
        super().__init__(bits, percent=percent)
        self.channels = channels
        self.gate = Gate(channels, whole=whole_gate)
        self.has_gate = SavedFlag(False)
        self.gate_acts = SavedFlag(False)
        # (b_u, b_l), averaged over recent training images.
        self.register_buffer("mean_factors", torch.ones(2))
        self._logits: Tensor | None = None
        self._extremes: list[tuple[Tensor, Tensor]] = []

    def kind_of(self, parameter: str) -> Kind:
        """The gate, or a bound."""
        return "gates" if parameter.startswith("gate.") else super().kind_of(parameter)

    @property
    def is_dynamic(self) -> bool:
        """Whether there is a gate, and it acts by now."""
        return self.has_gate.is_set and self.gate_acts.is_set

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
        x = x.float()
        logits: Tensor = self.gate(x)
        if not self.gate_acts.is_set:
            self._logits = logits
            return super().forward(x)
        lower, upper = self.range
        factors = 2.0 * torch.sigmoid(logits)
        if self.training:
            self.mean_factors.lerp_(factors.detach().mean(0), _MEMORY)
        upper_factor, lower_factor = factors.reshape(-1, 2, *[1] * (x.dim() - 1)).unbind(1)
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

    def overhead(self, pixels: int) -> Overhead:
        """The gate's weights and normalisation, and its products, which run once an image."""
        if not self.has_gate.is_set:
            return Overhead()
        weights = GATE_FEATURES * (self.channels.count + 2)
        return Overhead(
            storage_bits=weights * GATE_BITS + 2 * GATE_FEATURES * FLOAT_BITS,
            scales=2,
            bit_operations=2 * weights * GATE_BITS**2,
        )

    def grid(self) -> Grid:
        """The static grid.

        Raises:
            InputError: a gate makes it dynamic.
        """
        if self.is_dynamic:
            raise InputError("not a static grid", why=_NOT_STATIC)
        return super().grid()

    @torch.no_grad()
    def gate_form(self) -> FrozenGate | None:
        """The gate with its normalisation folded into a scale and a shift per hidden feature; None before it acts."""
        if not self.is_dynamic:
            return None
        squeeze, squeeze_scale = self.gate.ternary(self.gate.squeeze)
        excite, excite_scale = self.gate.ternary(self.gate.excite)
        norm = self.gate.normalize
        assert norm.running_mean is not None and norm.running_var is not None
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        lower, upper = self.range
        return FrozenGate(
            squeeze,
            (factor * squeeze_scale).cpu(),
            (norm.bias - norm.running_mean * factor).cpu(),
            excite,
            *(excite_scale.item(), lower.item(), upper.item(), self.bits),
        )


class Gate(nn.Module):
    """Logits of (b_u, b_l) from an image's features: float32 [N, C, H, W] or [N, ..., C] -> [N, 2]."""

    def __init__(self, channels: ChannelAxis, *, whole: bool) -> None:
        super().__init__()
        self.channels, self.whole = channels, whole
        self.squeeze = nn.Linear(channels.count, GATE_FEATURES, bias=False)
        self.normalize = nn.BatchNorm1d(GATE_FEATURES)
        self.excite = nn.Linear(GATE_FEATURES, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pool and apply the two 2-bit layers (1x1 convolutions of a pooled image are linear)."""
        pooled = x.detach().float().mean(self.channels.pixels(x))
        levels = _between_extremes(pooled, each=not self.training)
        hidden = F.relu(self._normalized(_product(levels, _ternary(self.squeeze.weight))))
        levels = _between_extremes(hidden if self.whole else hidden.detach(), each=not self.training)
        return _product(levels, _ternary(self.excite.weight))

    @staticmethod
    def ternary(layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """Codes -1, 0 and 1, int8 on the CPU, of what a layer computes with, and their scale, float32 []."""
        codes, bound = _ternary_codes(layer.weight.detach())
        return codes.to(torch.int8).cpu(), bound

    def _normalized(self, hidden: Tensor) -> Tensor:
        norm = self.normalize
        if len(hidden) > 1 or not self.training:
            return norm(hidden)  # type: ignore[no-any-return]
        return F.batch_norm(hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """X W^T, in float32 also under autocast, so that validation computes what training did; [N, I] -> [N, O]."""
    return (x.unsqueeze(1) * weight).sum(2)


def _ternary(weight: Tensor) -> Tensor:
    """-a, 0 or a with a = max|W|, rounding passed straight through."""
    codes, bound = _ternary_codes(weight.detach())
    return straight_through(weight, codes * bound)


def _ternary_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    bound = weight.abs().amax().clamp(min=_SMALLEST_WIDTH)
    return torch.round(weight / bound), bound


def _between_extremes(x: Tensor, *, each: bool) -> Tensor:
    """Multiples of a 2-bit step, the extremes of now three apart; rounding passed straight through.

    The extremes are those of the batch, as in the official code; with `each` those of each image, as engines have them.
    """
    fixed = x.detach()
    extent = fixed.amax(1, keepdim=True) - fixed.amin(1, keepdim=True) if each else fixed.max() - fixed.min()
    step = extent.clamp(min=_SMALLEST_WIDTH) / (2**GATE_BITS - 1)
    return straight_through(x, torch.round(fixed / step) * step)


def _gated_ranges(model: TrainableModel) -> list[GatedRange]:
    quantizers = [layer.activation for layer in model.layers.values()]
    return [quantizer for quantizer in quantizers if isinstance(quantizer, GatedRange)]
