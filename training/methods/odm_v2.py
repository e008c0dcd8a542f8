"""ODM v2 (Hong and Lee, ECCV 2024): "Overcoming Distribution Mismatch in Quantizing Image Super-Resolution Networks".

- Activations: learnable range (l, u) per layer, started at the mean over calibration batches of percentiles.
- Weights: symmetric range u_w = f(W) * gamma_w, f the 99th percentile of |W| now (held fixed), gamma_w learnable from
  1: *weight clipping correction*. Mid-rise levels, odd integers times u_w / (2^b - 1); at 2 bits {-u, -u/3, u/3, u}.
- Mismatch L_M = sum_i || X_i - q(X_i) ||_2, followed cooperatively:
  theta <- theta - beta * (g_R + lambda_M * sim(g_R, g_M) * g_M), sim = (cos + 1) / 2.
- gamma_w, l and u follow the reconstruction gradient only.

No code of the method was published; what the text leaves open is an option here. The options named
"deploy-grade" below are this project's: they cost nothing on any runtime.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from odm_deploy.errors import UsageError
from odm_deploy.grid import MAX_BITS
from odm_deploy.networks.base import SuperResolutionNetwork
from training.losses.cooperative import combine_cooperatively, combine_naively
from training.losses.features import TeacherSupervision, mismatch_loss
from training.methods.base import Method, Step
from training.model import TrainableModel
from training.quantizers.annealing import Exponents, anneal
from training.quantizers.base import ActivationQuantizer, Quantizable, WeightQuantizer, per_row, weight_rows
from training.quantizers.learnable_range import LearnableRange, RangeInit
from training.quantizers.statistics import row_percentile
from training.quantizers.weights import SMALLEST_BOUND, SymmetricWeight

_SMALLEST_GAMMA = 1e-3
_GAMMAS = tuple(0.1 * 1.06**step for step in range(60))  # up to 3.1: at 8 bits the largest weights matter


@dataclass(frozen=True)
class OdmV2Options:
    """Settings of ODM v2; the defaults are the paper's."""

    mismatch_weight: float = 1e-5
    """lambda_M; 1e-6 for RDN. 0 leaves the mismatch out."""
    mismatch_every: int = 1
    """Regularize every k-th step only, k times as strongly (deploy-grade): the second backward pass is most of what ODM
    costs over plain quantization-aware training."""
    mismatch_pixels: int = 0
    """Low-resolution pixels of the batch that lambda_M is meant for, 18432 (8 patches of 48x48) in the paper; other
    batches take lambda_M times the root of their ratio. The norm of the mismatch, which is not averaged, grows with the
    root of the batch, and the mean absolute error does not. 0: lambda_M as it is."""
    update: Literal["tensor", "global", "element", "naive"] = "tensor"
    """Over what the two gradients are compared; `naive` adds the mismatch without comparing (ablation)."""
    clipping: Literal["corrected", "learned", "percentile"] = "corrected"
    """u_w = f(W) * gamma (the paper's correction), a learned u_w alone, or f(W) alone (ablations)."""
    weight_percentile: float = 99.0
    """Percentile f(W); 100 is the largest."""
    percentile_of: Literal["absolute", "signed"] = "absolute"
    """Whether f looks at |W| or at W."""
    weight_levels: Literal["mid_rise", "mid_tread"] = "mid_rise"
    """Levels without (the paper) or with zero. 8-bit weights always have one: odd 8-bit codes do not fit int8."""
    per_channel: bool = False
    """One u_w per output channel (deploy-grade) rather than per layer (the paper)."""
    gamma_init: Literal["one", "mse"] = "one"
    """How gamma starts: at 1 (the paper), or where the squared error of the weights is smallest (deploy-grade). At two
    bits the 99th percentile is far too wide for mid-rise levels, and short runs have no time to learn that."""
    range_init: RangeInit = "percentile"
    """How activation ranges start."""
    range_percentile: float = 99.0
    """Percentile they start at, with range_init = "percentile"; the paper's 99 costs tails that short runs need."""
    relative_ranges: bool = False
    """Learn l and u in units of their initial width (deploy-grade), so that the learning rate suits every layer."""
    teacher_weight: float = 0.0
    """Share of the reconstruction loss that is taken against the float network's output rather than the target image
    (deploy-grade)."""
    power_of_two: bool = False
    """Scales of activations and weights are the nearest powers of two, exponents learned along with the ranges; what
    `quantization.profile = "exact"` needs (deploy-grade)."""
    anneal_exponents: int = 0
    """With `power_of_two`: iterations over which scales go from ordinary ones to powers of two (deploy-grade); 0: they
    are powers of two from the start."""
    free: bool = False
    """Eq. 1 to the letter: l is a level and zero need not be one; convolutions then pad with the level nearest zero."""


class OdmV2(Method[OdmV2Options]):
    """ODM v2; see the module's docstring."""

    name = "odm_v2"
    Options = OdmV2Options
    records_features = True
    auxiliary_name = "mismatch"
    _teacher: TeacherSupervision | None = None

    def __init__(self, options: OdmV2Options) -> None:
        super().__init__(options)
        if options.mismatch_every < 1:
            raise UsageError(f"cannot use method.mismatch_every = {options.mismatch_every}", fix="write 1 or more")
        if options.mismatch_pixels < 0:
            raise UsageError(f"cannot use method.mismatch_pixels = {options.mismatch_pixels}", fix="write 0 or more")
        if options.anneal_exponents < 0 or (options.anneal_exponents and not options.power_of_two):
            raise UsageError(
                f"cannot use method.anneal_exponents = {options.anneal_exponents}",
                why=f"power_of_two = {str(options.power_of_two).lower()}",
                fix="write a number of iterations, together with power_of_two = true",
            )
        if not 0.0 <= options.teacher_weight <= 1.0:
            raise UsageError(f"cannot use method.teacher_weight = {options.teacher_weight}", fix="write 0 up to 1")
        self.auxiliary_weight = options.mismatch_weight * options.mismatch_every
        self.power_of_two = options.power_of_two

    def activation_quantizer(self, bits: int, layer: Quantizable) -> ActivationQuantizer:
        """A learnable range."""
        o = self.options
        return LearnableRange(
            bits,
            init=o.range_init,
            percent=o.range_percentile,
            free=o.free,
            relative=o.relative_ranges,
            power_of_two=o.power_of_two,
            annealed=o.anneal_exponents > 0,
        )

    def weight_quantizer(self, bits: int, layer: Quantizable) -> WeightQuantizer:
        """A symmetric range with weight clipping correction."""
        return ClippedWeight(bits, layer.weight.detach(), self.options)

    def watch(self, model: TrainableModel, float_network: SuperResolutionNetwork) -> None:
        """Keep the float network where it teaches."""
        if self.options.teacher_weight:
            self._teacher = TeacherSupervision(model, float_network)

    def begin_iteration(self, model: TrainableModel, iteration: int) -> None:
        """Bring scales nearer to powers of two, where they are annealed."""
        if duration := self.options.anneal_exponents:
            anneal(model.network, min(iteration / duration, 1.0))

    def passes(self, model: TrainableModel) -> AbstractContextManager[object]:
        """Look for the percentiles of all weights at once."""
        clipped = [(layer.weight_quantizer, layer.weight) for layer in model.layers.values()]
        return ClippedWeight.looked_up_together([(q, weight) for q, weight in clipped if isinstance(q, ClippedWeight)])

    def operations(self, iteration: int) -> bool:
        """Whether the step regularizes."""
        return (iteration + 1) % self.options.mismatch_every == 0

    def reconstruction_loss(self, step: Step) -> Tensor:
        """L_R: mean absolute error against the target, in part against the float network's output."""
        loss = super().reconstruction_loss(step)
        if self._teacher is None:
            return loss
        taught = self._teacher.loss(step.low, step.output, autocast=step.autocast)
        return torch.lerp(loss, taught, self.options.teacher_weight)

    def auxiliary_loss(self, step: Step) -> Tensor | None:
        """L_M, on the steps that regularize."""
        if not self.operations(step.iteration):
            return None
        loss = mismatch_loss(step.model.records(), step.world)
        if not self.options.mismatch_pixels:
            return loss
        images, _, height, width = step.low.shape
        return loss * (self.options.mismatch_pixels / (images * height * width * step.world.size)) ** 0.5

    def combine(self, reconstruction: dict[str, Tensor], auxiliary: dict[str, Tensor]) -> dict[str, Tensor]:
        """g_R + lambda_M * sim(g_R, g_M) * g_M."""
        if self.options.update == "naive":
            return combine_naively(reconstruction, auxiliary, self.auxiliary_weight)
        return combine_cooperatively(reconstruction, auxiliary, self.auxiliary_weight, self.options.update)


class ClippedWeight(SymmetricWeight):
    """Weights on a symmetric range u_w = f(W) * gamma."""

    def __init__(self, bits: int, weight: Tensor, options: OdmV2Options) -> None:
        super().__init__(bits)
        self.mid_rise = options.weight_levels == "mid_rise" and bits < MAX_BITS
        self.power_of_two = options.power_of_two
        self.options = options
        self.exponents = Exponents(annealed=options.anneal_exponents > 0)
        # f(W) within `looked_up_together`.
        self.looked_up: Tensor | None = None
        percentile_bound = self.percentile_bound(weight)
        start = self._best_gamma(weight) if options.gamma_init == "mse" else torch.ones_like(percentile_bound)
        if options.clipping == "learned":
            start = start * percentile_bound
        self.gamma = nn.Parameter(start, requires_grad=options.clipping != "percentile")

    def _best_gamma(self, weight: Tensor) -> Tensor:
        rows = weight_rows(weight, per_channel=self.options.per_channel)
        bound = self.percentile_bound(weight).reshape(-1, 1)

        def error(factor: float) -> Tensor:
            levels = self.levels(rows, bound * factor)
            return (rows - levels).square().mean(dim=1)

        errors = torch.stack([error(factor) for factor in _GAMMAS])
        return torch.tensor(_GAMMAS)[errors.argmin(dim=0)]

    def percentile_bound(self, weight: Tensor) -> Tensor:
        """f(W): float32 [O] or [1], detached."""
        if self.looked_up is not None:
            return self.looked_up
        return self._percentile_bounds(self.rows(weight))

    def rows(self, weight: Tensor) -> Tensor:
        """Weights that share a bound: float32 [O, K] or [1, K], detached."""
        return weight_rows(weight, per_channel=self.options.per_channel)

    def _percentile_bounds(self, rows: Tensor) -> Tensor:
        rows = rows.abs() if self.options.percentile_of == "absolute" else rows
        return row_percentile(rows, self.options.weight_percentile).clamp(min=SMALLEST_BOUND)

    def bound(self, weight: Tensor) -> Tensor:
        """u_w, broadcastable to `weight`, differentiable in gamma."""
        return per_row(
            self.gamma if self.options.clipping == "learned" else self.percentile_bound(weight) * self.gamma, weight
        )

    def nearness(self) -> Tensor | None:
        """That of the annealing."""
        return self.exponents()

    def project(self) -> None:
        """Keep gamma positive."""
        self.project_all([self])

    @classmethod
    def project_all(cls, quantizers: Sequence[Any]) -> None:
        """As `project` does, in an operation for all of a model, whose options are the same."""
        smallest = SMALLEST_BOUND if quantizers[0].options.clipping == "learned" else _SMALLEST_GAMMA
        with torch.no_grad():
            cast("Any", torch)._foreach_clamp_min_([quantizer.gamma for quantizer in quantizers], smallest)

    @classmethod
    @contextmanager
    def looked_up_together(cls, pairs: Sequence[tuple[ClippedWeight, Tensor]]) -> Generator[None, None, None]:
        """Within it each of the quantizers knows f of the weight beside it, which must not change.

        A GPU takes no longer to look for the percentiles of all layers than for those of one.
        """
        groups: dict[int, list[tuple[ClippedWeight, Tensor]]] = {}
        for quantizer, weight in pairs:
            if quantizer.options.clipping != "learned":
                rows = quantizer.rows(weight)
                groups.setdefault(rows.shape[1], []).append((quantizer, rows))
        for group in groups.values():
            bounds = group[0][0]._percentile_bounds(torch.cat([rows for _, rows in group]))
            for (quantizer, _), bound in zip(group, bounds.split([len(rows) for _, rows in group]), strict=True):
                quantizer.looked_up = bound
        try:
            yield
        finally:
            for quantizer, _ in pairs:
                quantizer.looked_up = None
