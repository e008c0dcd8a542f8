"""What `bench` says: latencies, throughput, and the speedup over the float twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from odm_deploy.bench.gpu_watch import GpuState
from odm_deploy.bench.limits import LayerLimit
from odm_deploy.bench.steadiness import UNSTEADY
from odm_deploy.bench.timing import Percentiles
from odm_deploy.building.layer_table import LayerRecord
from odm_deploy.runtimes.base import RunTimes
from odm_deploy.terminal import table

if TYPE_CHECKING:
    from rich.table import Table

_HEAD = ("", "p50 ms", "p90 ms", "p99 ms", "mean ms", "images/s", "out Mpix/s", "runs")
_WORTH_EXPLAINING = 1.5
_LAYERS_SHOWN = 5


@dataclass(frozen=True)
class Measurement:
    """One model's durations on one input shape."""

    model: str
    """What was timed, for humans: a path, or "float twin (fp32)"."""
    iterations: int
    latency_ms: Percentiles
    """From arrays in host memory to arrays in host memory; on a GPU the sum of the three below."""
    images_per_s: float
    """Batch size over mean latency: what one stream that waits for each result gets."""
    mpix_per_s: float
    """Output megapixels per second, at the same rate."""
    compute_ms: Percentiles | None = None
    """GPU only: between CUDA events around the network; trtexec's "GPU Compute Time"."""
    h2d_ms: Percentiles | None = None
    """GPU only: input, host to device."""
    d2h_ms: Percentiles | None = None
    """GPU only: output, device to host."""
    back_to_back_ms: float | None = None
    """Engines only: GPU compute of a run among many queued one behind the other. `compute_ms` holds the host's launch,
    too, some 10 us; this is what an application gets that queues the next image before the last one is done."""

    @classmethod
    def of(
        cls, model: str, runs: Sequence[RunTimes], batch: int, output_pixels: int, back_to_back_ms: float | None = None
    ) -> Measurement:
        """Summarise at least one run of `batch` images, which put out `output_pixels` together."""
        latency = Percentiles.of([run.latency_ms for run in runs])
        runs_per_s = 1e3 / latency.mean
        return cls(
            model,
            len(runs),
            latency,
            batch * runs_per_s,
            output_pixels * runs_per_s / 1e6,
            _percentiles([run.compute_ms for run in runs]),
            _percentiles([run.h2d_ms for run in runs]),
            _percentiles([run.d2h_ms for run in runs]),
            back_to_back_ms,
        )

    @property
    def deciding_ms(self) -> Percentiles:
        """Whose medians speedups compare: GPU compute where known (copies are the same for both), else latency."""
        return self.compute_ms or self.latency_ms

    @property
    def steady(self) -> bool:
        """Whether its median is worth naming."""
        return self.deciding_ms.spread <= UNSTEADY

    def to_dict(self) -> dict[str, Any]:
        """JSON keys; the GPU's parts only where they were measured."""
        return {**{key: value for key, value in asdict(self).items() if value is not None}, "steady": self.steady}


@dataclass(frozen=True)
class LayerTime:
    """What one layer of an engine takes, as TensorRT measures it, kernel by kernel."""

    name: str
    """The engine's own name for it."""
    precision: str
    """`int8`, `fp16`, ...; `unknown` where the manifest lists no such layer."""
    ms: float
    share: float
    """Its part of the sum of all layers."""

    @classmethod
    def of(cls, times_ms: Mapping[str, float], layers: Sequence[LayerRecord]) -> tuple[LayerTime, ...]:
        """All layers, the slowest first, from milliseconds by the engine's name of the layer."""
        precisions = {layer.name: layer.precision for layer in layers}
        total = sum(times_ms.values()) or 1.0
        found = [cls(name, precisions.get(name, "unknown"), ms, ms / total) for name, ms in times_ms.items()]
        return tuple(sorted(found, key=lambda layer: -layer.ms))


@dataclass(frozen=True)
class BenchReport:
    """A model's measurement beside that of its float twin on the same runtime."""

    runtime: str
    device: str
    shape: tuple[int, ...]
    """Input shape [N, 3, H, W]."""
    measurement: Measurement
    baseline: Measurement | None
    """The float twin; None where there is none."""
    baseline_note: str = ""
    """Why there is no baseline."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """What the runtime says about itself: versions, threads, precision."""
    passed_over: tuple[str, ...] = ()
    """Why runtimes that should be faster were not taken."""
    limits: tuple[str, ...] = ()
    """What keeps int8 from being faster, the weightiest first."""
    slow_layers: tuple[LayerLimit, ...] = ()
    """Why single layers gain less than int8 could give, the one with the most multiply-accumulates first."""
    layer_times: tuple[LayerTime, ...] = ()
    """Of an engine: where its time goes, the slowest layer first."""
    gpu: GpuState | None = None
    """What the GPU did meanwhile; None on a CPU, and where nobody tells."""
    gpu_note: str = ""
    """Why nobody tells what the GPU did."""
    speedup_at_best: float | None = None
    """By the fastest runs, where `speedup` is unsteady and they agree."""

    @property
    def speedup(self) -> float | None:
        """How many times faster than the float twin, by medians; below 1 the quantized model is slower."""
        return None if self.baseline is None else self.baseline.deciding_ms.p50 / self.measurement.deciding_ms.p50

    @property
    def slowdown_range(self) -> tuple[float, float] | None:
        """Times the float twin's duration that the model takes, at least and at most, by the quartiles of both, and by
        the fastest runs where these say something else.
        """
        if self.baseline is None:
            return None
        mine, twins = self.measurement.deciding_ms, self.baseline.deciding_ms
        found = [mine.p25 / twins.p75, mine.p75 / twins.p25]
        found += [] if self.speedup_at_best is None else [1.0 / self.speedup_at_best]
        return min(found), max(found)

    @property
    def steady(self) -> bool:
        """Whether both medians, and so the speedup, are worth naming."""
        both = self.measurement.steady and (self.baseline is None or self.baseline.steady)
        return both and self.speedup_at_best is None

    def unsteady_line(self) -> str:
        """Which durations lie too far apart to be compared, as one line; empty where none do."""
        found = [item for item in (self.measurement, self.baseline) if item is not None and not item.steady]
        ranges = [
            f"half of the runs of {item.model} took {plain_number(times.p25)} to {plain_number(times.p75)} ms"
            for item, times in ((item, item.deciding_ms) for item in found)
        ]
        return f"unsteady, also when timed again: {', '.join(ranges)}; let nothing else run" if ranges else ""

    @property
    def back_to_back_speedup(self) -> float | None:
        """The same for runs queued one behind the other; None where that was not timed."""
        mine, twins = self.measurement.back_to_back_ms, self.baseline and self.baseline.back_to_back_ms
        return twins / mine if mine and twins else None

    def to_dict(self) -> dict[str, Any]:
        """The document `bench --json` prints."""
        return {
            "runtime": self.runtime,
            "device": self.device,
            "shape": list(self.shape),
            **self.measurement.to_dict(),
            "baseline": None if self.baseline is None else self.baseline.to_dict(),
            "baseline_note": self.baseline_note,
            "speedup": self.speedup,
            "speedup_at_best": self.speedup_at_best,
            "back_to_back_speedup": self.back_to_back_speedup,
            "settings": self.settings,
            "passed_over": list(self.passed_over),
            "limits": list(self.limits),
            "slow_layers": [asdict(layer) for layer in self.slow_layers],
            "layer_times": [asdict(layer) for layer in self.layer_times],
            "gpu": None if self.gpu is None else asdict(self.gpu),
            "gpu_note": self.gpu_note,
        }

    def to_table(self) -> Table:
        """The same for humans."""
        size = f"{'x'.join(map(str, self.shape))} ({self.shape[3]} wide, {self.shape[2]} high)"
        speedup = "" if self.speedup is None else f", {self.speedup:.2f} times as fast as in float"
        if self.back_to_back_speedup is not None:
            speedup += f" ({self.back_to_back_speedup:.2f} back to back)"
        speedup += "" if self.steady else ", unsteady"
        speedup += "" if self.speedup_at_best is None else f", {self.speedup_at_best:.2f} times by the fastest runs"
        rows: list[tuple[str, ...]] = []
        for item in filter(None, (self.measurement, self.baseline)):
            rates = (plain_number(item.images_per_s), plain_number(item.mpix_per_s), str(item.iterations))
            rows.append((item.model + ("" if item.steady else " (unsteady)"), *_cells(item.latency_ms), *rates))
            parts = (("GPU compute", item.compute_ms), ("H2D", item.h2d_ms), ("D2H", item.d2h_ms))
            rows += [(f"  {label}", *_cells(part), "", "", "") for label, part in parts if part is not None]
            if item.back_to_back_ms is not None:
                rate = plain_number(1e3 * self.shape[0] / item.back_to_back_ms)
                rows.append(("  compute, back to back", plain_number(item.back_to_back_ms), *[""] * 3, rate, "", ""))
        return table(f"{self.runtime} on {self.device}, input {size}{speedup}", _HEAD, rows)

    def explanation(self) -> tuple[str, ...]:
        """What keeps the model from being faster, a line each; nothing for one that is fast, or has no twin."""
        if self.speedup is None or self.speedup >= _WORTH_EXPLAINING:
            return ()
        known = "What keeps it from being faster:" if self.limits else "Nothing known keeps it from being faster."
        said = [*self.limits]
        said += [
            f"{layer.name}, {layer.mac_share:.0%} of the multiply-accumulates: {layer.reason}"
            for layer in self.slow_layers[:_LAYERS_SHOWN]
        ]
        if len(self.slow_layers) > _LAYERS_SHOWN:
            said.append(f"and {len(self.slow_layers) - _LAYERS_SHOWN} more layers (--json has all)")
        said += [
            f"{layer.name} ({layer.precision}) takes {layer.ms:.3g} ms, {layer.share:.0%} of the sum"
            for layer in self.layer_times[:_LAYERS_SHOWN]
        ]
        return (known, *(f"  - {line}" for line in said))

    def gpu_line(self) -> str:
        """What the GPU did meanwhile, or why that is unknown, as one line; empty on a CPU."""
        if self.gpu is None:
            return self.gpu_note
        state = self.gpu
        parts = [
            "" if state.memory_mib is None else f"{state.memory_mib} MiB of GPU memory",
            "" if state.sm_clock_mhz is None else f"SM clock {state.sm_clock_mhz[0]} to {state.sm_clock_mhz[1]} MHz",
            "" if state.max_temperature_c is None else f"{state.max_temperature_c} C",
            "" if state.max_power_w is None else f"{state.max_power_w:.0f} W",
            f"THROTTLED by {', '.join(state.throttles)}" if state.throttles else "not throttled",
        ]
        return ", ".join(part for part in parts if part)


def _percentiles(samples_ms: Sequence[float | None]) -> Percentiles | None:
    known = [sample for sample in samples_ms if sample is not None]
    return Percentiles.of(known) if known else None


def _cells(times: Percentiles) -> tuple[str, ...]:
    return tuple(plain_number(value) for value in (times.p50, times.p90, times.p99, times.mean))


def plain_number(value: float) -> str:
    """Three significant digits at least, without an exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.3g}"
