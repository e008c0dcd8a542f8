"""End to end: the same image bytes through the reference and a runtime, beside the reference's own noise floor.

With ordinary scales one model does not even agree with itself: computed in float32 and in float64, a rounding tie falls
the other way somewhere, and the difference spreads through the layers behind it. That distance is the *noise floor*. A
runtime that is no further away than the floor computes the same model.

How far the floor is takes luck: a handful of ties decides how much of an image differs. So several equally legitimate
results of the reference are drawn (float64, and float32 with every quantizer's input moved by up to one unit in its
last place), and the furthest counts. Where layers were compared one by one they decide: if rounding explains what flips
in each of them, the runtime computes the model, and the outputs only have to be apart by what that rounding can do.
The draws then move values as far as a runtime's rounding may (`rounding_of`). It does so in more
places than the reference's, and at 2 bits one code in a million turns a deep network's image into another: draws that
happen to flip nothing are no measure of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from odm_deploy.imaging.pairs import Sample
from odm_deploy.imaging.pixels import to_batch, to_pixels
from odm_deploy.proof.evaluation import Upscale
from odm_deploy.proof.layer_parity import FEW_TIES, MAX_TIE_RATE, OUTPUT, LayerParity
from odm_deploy.proof.parity_report import Distance, ParityReport
from odm_deploy.proof.reference import TorchReference
from odm_deploy.quantization.exact.sums import sums_are_exact
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.runtimes.base import Runtime

FLOOR_DRAWS = 3
"""Results of the reference with jittered roundings that are drawn besides its float64 one."""


def compare(
    model: QuantizedModel,
    runtime: Runtime,
    samples: Iterable[Sample],
    layers: Sequence[LayerParity] = (),
) -> ParityReport:
    """Run every sample through the reference, its noise floor and a runtime.

    Args:
        model: the reference.
        runtime: what is being proven.
        samples: images, consumed one by one; the scale's width of border is left out of PSNR and SSIM.
        layers: how each layer fared on that runtime (`compare_layers`), which tells how far its rounding goes.

    Raises:
        InputError: outputs that are not finite, or of another size than the reference's.
    """
    reference, double = TorchReference(model), TorchReference(model, "float64")
    draws = floor_draws(model, reference, rounding_of(layers, runtime.rounding_steps))
    report = ParityReport(
        {**runtime.describe(), "rounding_note": runtime.rounding_note},
        layers=list(layers),
        draws=[Distance() for _ in draws],
        exact=model.exact is not None,
    )
    for sample in samples:
        image = to_batch(sample.low)
        expected = to_pixels(reference.upscale(image))
        found = to_pixels(runtime.upscale(image))
        report.images += 1
        report.distance.add(found, expected)
        report.floor.add(to_pixels(double.upscale(image)), expected)
        for draw, upscale in zip(report.draws, draws, strict=True):
            draw.add(to_pixels(upscale(image)), expected)
        if sample.truth is not None:
            report.reference_quality.add(expected, sample.truth, model.scale)
            report.runtime_quality.add(found, sample.truth, model.scale)
    return report


@dataclass(frozen=True)
class Rounding:
    """How a runtime rounds, as noise for the reference; the defaults are one unit in the last place."""

    noise_steps: float = 0.0
    """How far a value may move, in steps of its layer's grid, where that is more than one unit in its last place."""
    tie_share: float = 1.0
    """Share of the values exactly between two codes that move."""


def rounding_of(layers: Iterable[LayerParity], least_steps: float = 0.0) -> Rounding:
    """How far rounding may move what a quantizer is given, judged by a runtime's layers.

    By what flips as large a share of the codes as flipped: a value moved by u steps crosses a tie with probability |u|,
    and noise spread evenly over [-a, a] moves values by a / 2 on average, so a is twice the share. Beyond
    `MAX_TIE_RATE` flips are no rounding any more. Exactly on ties any noise flips every other value, and runtimes flip
    fewer: as many move as flip what flipped there, and `FEW_TIES` more.

    Args:
        layers: what was counted; without any, nothing is known of the runtime.
        least_steps: how far the runtime is known to round, `Runtime.rounding_steps`.
    """
    quantizers = [layer for layer in layers if layer.name != OUTPUT]
    codes = sum(layer.codes for layer in quantizers)
    if not codes:
        return Rounding()
    rate = min(sum(layer.flips for layer in quantizers) / codes, MAX_TIE_RATE)
    ties = sum(layer.ties for layer in quantizers)
    on_ties = sum(layer.tie_flips for layer in quantizers)
    tie_share = min(1.0, 2.0 * (on_ties + FEW_TIES) / ties) if ties else 1.0
    return Rounding(max(least_steps, 2.0 * rate), tie_share)


def floor_draws(model: QuantizedModel, reference: TorchReference, rounding: Rounding) -> list[Upscale]:
    """`FLOOR_DRAWS` ways of computing the reference that round as legitimately as it does.

    None where sums are exact and so are quotients: there jitter would invent flips.
    """
    dividing_is_exact = all(layer.grid.is_power_of_two for layer in model.layers.values())
    if model.exact is not None or (dividing_is_exact and sums_are_exact(model)):
        return []
    return [partial(reference.upscale_jittered, seed=seed, **asdict(rounding)) for seed in range(FLOOR_DRAWS)]
