"""PAMS (Li et al., ECCV 2020): "PAMS: Quantized Super-Resolution via Parameterized Max Scale".

y = round(clip(x, -a, a) Q / a) a / Q with Q = 2^(b-1) - 1 and one learnable a per layer, started at the mean over
images of max|x|; weights likewise with a = max|W| per layer (Eqs. 1-5). Signed also after a ReLU: half the levels then
idle, and 2 bits are ternary. Loss: L1 + 1000 L_SKT (Sec. 3.3). Recipes give a the learning rate 1e-2. Static.

In the first epoch nothing is clipped and a follows the mean of max|x| of each batch (`first_epoch`).

An integer grid of b bits has one level more than PAMS uses, -(Q+1) a / Q: -2a at two bits. Runtimes cannot forbid it,
so by default training has it too and the result is exactly exportable; `faithful` trains on the official levels and is
not, unless no negative input ever reaches the layer, where the extra level is never met.

The official code quantizes only the shortcut before conv1 of each block, so that conv1 itself reads an unquantized
tensor, and starts the student from scratch. Neither is reproduced: every convolution has its own quantizer, and all
methods start from the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.quantization.straight_through.division import divided
from odm_deploy.quantization.straight_through.step import step_quantize
from training.methods.base import TransferMethod, TransferOptions
from training.model import TrainableModel
from training.quantizers.base import ActivationQuantizer, Quantizable, SavedFlag, WeightQuantizer
from training.quantizers.weights import LargestWeight

_SMALLEST_SCALE = 1e-4
_UNCLIPPED = 1 << 20  # codes that no feature reaches


@dataclass(frozen=True)
class PamsOptions(TransferOptions):
    """Settings of PAMS; the defaults are the paper's but for the level an integer grid adds."""

    faithful: bool = False
    """Exactly the official levels -Q..Q."""
    first_epoch: int = 1000
    """Iterations in which a is the mean of max|x| of each batch and nothing is clipped, one epoch as published; after
    them a is learned from where it then is. 0: learned from the start."""


class Pams(TransferMethod[PamsOptions]):
    """PAMS; see the module's docstring."""

    name = "pams"
    Options = PamsOptions

    def activation_quantizer(self, bits: int, layer: Quantizable) -> ActivationQuantizer:
        """A learnable largest magnitude."""
        return MaxScale(bits, faithful=self.options.faithful)

    def begin_iteration(self, model: TrainableModel, iteration: int) -> None:
        """End the first epoch when its time has come."""
        for layer in model.layers.values():
            if isinstance(layer.activation, MaxScale):
                layer.activation.follows.set(self.operations(iteration))

    def operations(self, iteration: int) -> bool:
        """Whether this is still the first epoch."""
        return iteration < self.options.first_epoch

    def weight_quantizer(self, bits: int, layer: Quantizable) -> WeightQuantizer:
        """max|W| per layer."""
        return LargestWeight(bits, per_channel=False)

    def why_not_exportable(self) -> str | None:
        """The official levels are not those of an integer grid."""
        if self.options.faithful:
            return "faithful PAMS leaves a level of the integer grid unused, which no runtime can forbid"
        return None


class MaxScale(ActivationQuantizer):
    """Symmetric activations on a learnable largest magnitude a."""

    def __init__(self, bits: int, *, faithful: bool) -> None:
        super().__init__(bits)
        self.faithful = faithful
        self.positive_codes = 2 ** (bits - 1) - 1
        self.alpha = nn.Parameter(torch.tensor(1.0))
        # The first epoch: a follows the batches.
        self.follows = SavedFlag(False)
        self._maxima: list[Tensor] = []

    def observe(self, x: Tensor) -> None:
        """Keep the largest magnitude of each image."""
        self._maxima.append(_largest(x))

    def initialize(self) -> None:
        """A = mean over images of max|x|."""
        with torch.no_grad():
            self.alpha.copy_(torch.cat(self._maxima).mean())
        self._maxima.clear()
        self.project()

    def forward(self, x: Tensor) -> Tensor:
        """Levels of `x`; the gradient of a is that of its step, a / Q: sign(x) outside, (y - x) / a inside."""
        if self.training and self.follows.is_set:
            with torch.no_grad():
                self.alpha.copy_(_largest(x).mean().clamp(min=_SMALLEST_SCALE))
            return step_quantize(x, divided(self.alpha, self.positive_codes), _UNCLIPPED, _UNCLIPPED)
        negative_codes = self.positive_codes + (0 if self.faithful else 1)
        return step_quantize(x, divided(self.alpha, self.positive_codes), negative_codes, self.positive_codes)

    @torch.no_grad()
    def project(self) -> None:
        """Keep a positive."""
        self.alpha.clamp_(min=_SMALLEST_SCALE)

    def grid(self) -> Grid:
        """The static grid.

        Raises:
            InputError: the official levels are not a grid.
        """
        if self.faithful:
            raise InputError(
                "not an integer grid", why="its lowest code is never used", fix="set method.faithful=false"
            )
        step = divided(self.alpha.detach(), self.positive_codes)
        return Grid(step.item(), self.positive_codes + 1, self.bits)


def _largest(x: Tensor) -> Tensor:
    """max|x| of each image: float32 [N]."""
    return x.detach().float().abs().flatten(1).amax(dim=1)
