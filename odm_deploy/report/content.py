"""What a report says, as values: no HTML and no markdown in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from odm_deploy.bench.report import BenchReport, plain_number
from odm_deploy.building.coverage import Coverage
from odm_deploy.proof.parity_report import ParityReport
from odm_deploy.proof.parity_text import verdict
from odm_deploy.proof.visibility import visibility
from odm_deploy.report.crops import CropRow
from odm_deploy.report.layer_statistics import LayerStatistics


def drop_in_words(drop_db: float) -> str:
    """What losing so much PSNR against ground truth means to people who look."""
    if drop_db < 0.05:
        return "not visible"
    return "visible side by side" if drop_db < 0.3 else "visible"


@dataclass(frozen=True)
class ReportContent:
    """Everything `odm-deploy report` found out about a bundle; what was left out says why."""

    title: str
    facts: Sequence[tuple[str, str]]
    """What the bundle is: name and value."""
    parity: ParityReport
    layers: Sequence[LayerStatistics]
    crops: Sequence[CropRow]
    weight_errors: dict[str, float] = field(default_factory=dict[str, float])
    """By layer; empty without float weights."""
    bench: BenchReport | None = None
    bench_note: str = ""
    """Why there is no latency."""
    coverage: Coverage | None = None
    coverage_note: str = ""
    """Where coverage is known from, or why it is not."""

    @property
    def passed(self) -> bool:
        """Whether the runtime computes the reference."""
        return not self.parity.failures()

    @property
    def verdict(self) -> str:
        """The line that matters, as `odm-deploy verify` prints it."""
        return verdict(self.parity)

    def figures(self) -> list[tuple[str, str, str]]:
        """What stands next to the verdict: what it is about, the figure, and what that means in words."""
        distance = self.parity.distance
        apart, words = "identical", "bit for bit"
        if distance.differing:
            apart = f"{distance.psnr_db:.1f} dB apart"
            words = visibility(distance.psnr_db, distance.max_lsb)
        found = [("runtime and reference", apart, words)]
        drop = self.parity.psnr_drop_db
        if drop is not None:
            psnr = f"{self.parity.runtime_quality.mean.psnr_y_db:.2f} dB PSNR-Y"
            found.append(
                ("against ground truth", psnr, f"{drop_in_words(drop)}: {drop:.2f} dB less than the reference")
            )
        if self.bench is not None and self.bench.speedup is not None:
            compared = f"that of the same network in float, on {self.bench.runtime}"
            at_best = self.bench.speedup_at_best
            unsteady = "unsteady" if at_best is None else f"{at_best:.2f} times by the fastest runs"
            speed = f"{self.bench.speedup:.2f} times" if self.bench.steady else unsteady
            found.append(("speed", speed, compared))
        return found

    def latency_rows(self) -> list[tuple[str, ...]]:
        """Model, median ms, 99th percentile ms, output megapixels per second; the float twin second."""
        if self.bench is None:
            return []
        return [
            (item.model, *map(plain_number, (item.latency_ms.p50, item.latency_ms.p99, item.mpix_per_s)))
            for item in (self.bench.measurement, self.bench.baseline)
            if item is not None
        ]

    def latency_line(self) -> str:
        """The speedup as a sentence; empty without latency."""
        if self.bench is None:
            return ""
        n, _, height, width = self.bench.shape
        where = f"{self.bench.runtime} on {self.bench.device}, {n} image{'s' if n > 1 else ''} of {width}x{height}"
        if self.bench.speedup is None:
            return f"{where}. No float twin: {self.bench.baseline_note}."
        if not self.bench.steady:
            return f"{where}: {self.bench.unsteady_line()}."
        return f"{where}: {self.bench.speedup:.2f} times as fast as the same network in float."

    def coverage_line(self) -> str:
        """Int8 coverage as a sentence."""
        found = self.coverage
        if found is None:
            return self.coverage_note
        share = found.int8_share("multiply-accumulates")
        layers = f"{found.int8_layers} of {found.quantized_layers} quantized layers run as int8"
        return f"{layers}{share} ({self.coverage_note})."
