"""LSQ (Esser et al., ICLR 2020): learned step size quantization, the plain strong baseline.

y = round(clip(x / s, -Qn, Qp)) * s with one learnable step s per layer. Activations that are never negative on the
first batches are unsigned (Qn = 0, Qp = 2^b - 1), others signed (Qn = 2^(b-1), Qp = Qn - 1), as weights are. Steps
start at 2 mean|x| / sqrt(Qp) and their gradient is scaled by 1 / sqrt(numel * Qp) (Secs. 2.1, 2.2). Static and
exportable.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.methods.base import Method
from training.quantizers.base import ActivationQuantizer, Quantizable, WeightQuantizer
from training.quantizers.learned_step import LearnedStep, LearnedWeightStep


@dataclass(frozen=True)
class LsqOptions:
    """Settings of LSQ; the defaults are the paper's."""

    per_channel: bool = False
    """One weight step per output channel rather than per layer (the paper)."""
    scale_gradients: bool = True
    """Divide the steps' gradients by sqrt(numel * Qp). Adam ignores a constant factor; other optimizers do not."""


class Lsq(Method[LsqOptions]):
    """LSQ; see the module's docstring."""

    name = "lsq"
    Options = LsqOptions

    def activation_quantizer(self, bits: int, layer: Quantizable) -> ActivationQuantizer:
        """A learned step."""
        return LearnedStep(bits, scale_gradients=self.options.scale_gradients)

    def weight_quantizer(self, bits: int, layer: Quantizable) -> WeightQuantizer:
        """A learned step, signed."""
        return LearnedWeightStep(
            bits,
            layer.weight.detach(),
            per_channel=self.options.per_channel,
            scale_gradients=self.options.scale_gradients,
        )
