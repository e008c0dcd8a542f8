"""One model on one runtime, as `gpu_report.py` measures it: its steps, and its section of the page.

Every engine that is timed is built for one size alone, the quantized one as its half-precision and float32 twins:
kernels chosen for one size would otherwise be compared with kernels chosen for another. What one engine for all sizes
costs is a row of its own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_report_page as page
from gpu_report_steps import Result, Results, Step, verb

from odm_deploy.building.build import build_engine
from odm_deploy.building.options import BuildOptions
from odm_deploy.bundle import Bundle
from odm_deploy.checkpoint import load_model
from odm_deploy.graphs.input_shapes import parse_shapes
from odm_deploy.lowering.float_twin import float_twin
from odm_deploy.machine.builders import BUILDERS

_SMALLEST_PX = 96


@dataclass(frozen=True)
class Part:
    """A model on a runtime."""

    runtime: str
    model: Path
    images: Path
    out: Path
    """The report's folder."""
    sizes: Sequence[str]
    """Input sizes to time, WIDTHxHEIGHT."""
    seconds: float
    """Time to spend on each measurement."""

    @property
    def _name(self) -> str:
        return f"{self.runtime}-{self.model.stem}"

    @property
    def _builds(self) -> bool:
        return self.runtime in BUILDERS

    @property
    def rests(self) -> tuple[str, ...]:
        """What the layers that are not quantized are computed in, the fastest first; CPU runtimes take float32."""
        return ("fp16", "fp32") if self._builds else ("fp32",)

    def chain(self, rest: str, needs: tuple[str, ...] = ()) -> list[Step]:
        """Export with this rest, compare with the reference, and time at every size."""
        exported, what = f"{self._name}/{rest}-export", f"{self.model.stem} on {self.runtime}, int8, rest {rest}"
        engine = ["--builder", self.runtime, "--shapes", self._all_sizes()] if self._builds else ["--no-engine"]
        arguments = ["export", self.model, "-o", self._folder(rest), "--precision", rest, *engine]
        steps = [Step(exported, f"{what}: export", self._unless_exact(rest, verb(*arguments)), 2, needs)]
        # Layer by layer, too, where nobody has looked before; on CPU runtimes the tests do.
        layers = [] if self._builds else ["--no-layers"]
        steps.append(self._verify(rest, self.runtime, layers))
        for size in self.sizes:
            timed = self._built(rest, size) if self._builds else self._bench(self._folder(rest), size)
            steps.append(Step(f"{self._name}/{rest}-{size}-bench", f"{what} at {size}", timed, 2, (exported,)))
        return steps

    def extras(self) -> list[Step]:
        """What engines are worth comparing with: float32, one engine for all sizes, the same graph elsewhere."""
        if not self._builds:
            return []
        steps: list[Step] = []
        for size in self.sizes:
            name, needs = f"{self._name}/float32-{size}-bench", (f"{self._name}/fp32-export",)
            steps.append(Step(name, f"{self._name} in float32 at {size}", self._float32(size), 2, needs))
        for rest in self.rests:
            size, needs = self.sizes[0], (f"{self._name}/{rest}-export",)
            timed = self._bench(self._folder(rest), size, "--no-baseline")
            what = f"{self._name}, rest {rest}, one engine for all sizes, at {size}"
            steps.append(Step(f"{self._name}/{rest}-all-sizes-bench", what, timed, 1, needs))
            steps.append(self._verify(rest, "onnxruntime", ["--no-layers"]))
        return steps

    def section(self, results: Results) -> list[str]:
        """The part's section of the page, from the results there are so far."""
        found = {name.rpartition("/")[2]: each for name, each in results.items() if name.startswith(f"{self._name}/")}
        lines: list[str] = []
        for rest in self.rests:
            exported = found.get(f"{rest}-export", {})
            if "failed" in exported:
                lines.append(f"- int8, rest {rest}: {exported['failed']}")
                continue
            lines += [
                page.distance(f"int8, rest {rest}, {runtime} against the reference", found[f"{rest}-verify-{runtime}"])
                for runtime in dict.fromkeys((self.runtime, "onnxruntime"))
                if f"{rest}-verify-{runtime}" in found
            ]
        rows: list[tuple[str, str, Mapping[str, Any]]] = []
        for size in self.sizes:
            named = [(f"int8, rest {rest}", f"{rest}-{size}-bench") for rest in self.rests]
            named.append(("fp32", f"float32-{size}-bench"))
            if size == self.sizes[0]:
                named += [(f"int8, rest {rest}, built for all sizes", f"{rest}-all-sizes-bench") for rest in self.rests]
            rows += [(size, label, found[name]) for label, name in named if self._worth_a_row(found, name)]
        table = page.latencies(rows)
        return page.section(f"{self.runtime}: {self.model.stem}", [*lines, *([""] if lines and table else []), *table])

    def _worth_a_row(self, found: Mapping[str, Result], name: str) -> bool:
        """Whether there is a result, and it does not just say again that an export failed."""
        exported = found.get(f"{name.partition('-')[0].replace('float32', 'fp32')}-export", {})
        return name in found and "failed" not in exported

    def _folder(self, rest: str) -> Path:
        return self.out / self._name / rest

    def _all_sizes(self) -> str:
        widths, heights = zip(*(map(int, size.split("x")) for size in self.sizes), strict=True)
        best = max(self.sizes, key=lambda size: int(size.split("x")[1]))
        return f"1x3x16x16:{_shape(best)}:1x3x{max(*heights, _SMALLEST_PX)}x{max(*widths, _SMALLEST_PX)}"

    def _unless_exact(self, rest: str, export: Callable[[float], Result]) -> Callable[[float], Result]:
        def run(seconds: float) -> Result:
            if rest != "fp32" and load_model(self.model).exact is not None:
                return {"failed": "not of an exact model, whose sums need float32's 24 bits"}
            return export(seconds)

        return run

    def _verify(self, rest: str, runtime: str, options: Sequence[str]) -> Step:
        """The same image bytes through the reference and a runtime."""
        arguments = ["verify", self._folder(rest), "--against", self.model, "--images", self.images]
        what = f"{self.model.stem}, rest {rest}, on {runtime} against the reference"
        run = verb(*arguments, "--runtime", runtime, *options)
        return Step(f"{self._name}/{rest}-verify-{runtime}", what, run, 2, (f"{self._name}/{rest}-export",))

    def _bench(self, model: Path, size: str, *options: str) -> Callable[[float], Result]:
        return verb("bench", model, "--runtime", self.runtime, "--size", size, "--seconds", self.seconds, *options)

    def _built(self, rest: str, size: str) -> Callable[[float], Result]:
        """Build a copy of the bundle for one size, and time it."""
        folder = self._folder(f"{rest}-{size}")

        def run(seconds: float) -> Result:
            start = time.monotonic()
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(self._folder(rest), folder)
            built = verb("build", folder, "--builder", self.runtime, "--shapes", _shape(size))(seconds)
            if "failed" in built:
                return {"failed": f"build: {built['failed']}"}
            return self._bench(folder, size)(seconds - (time.monotonic() - start))

        return run

    def _float32(self, size: str) -> Callable[[float], Result]:
        graph = self.out / self._name / f"float32-{size}.onnx"

        def run(seconds: float) -> Result:
            start, plan = time.monotonic(), graph.with_suffix(".plan")
            graph.write_bytes(float_twin(Bundle.open(self._folder("fp32")).graph).SerializeToString())
            shapes = parse_shapes(_shape(size))
            build_engine(graph, plan, BuildOptions(builder=self.runtime, shapes=shapes, tf32=False, timeout_s=seconds))
            return self._bench(plan, size, "--no-baseline")(seconds - (time.monotonic() - start))

        return run


def _shape(size: str) -> str:
    """`WxH` as a shape of one image."""
    width, height = size.split("x")
    return f"1x3x{height}x{width}"
