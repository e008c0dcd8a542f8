"""End to end: the same image bytes through the reference and a runtime, beside the reference's own noise floor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from odm_deploy.imaging.pairs import Sample
from odm_deploy.imaging.pixels import to_batch, to_pixels
from odm_deploy.proof.distance import Distance
from odm_deploy.proof.layer_parity import LayerParity
from odm_deploy.proof.noise_floor import floor_draws, rounding_of
from odm_deploy.proof.parity_report import ParityReport
from odm_deploy.proof.torch_reference import TorchReference
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.runtimes.base import Runtime


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
