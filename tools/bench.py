"""Our models beside what people would use instead, on the runtimes of this machine: one JSON, one table, one plot.

    make bench                                                    all networks; hours
    python tools/bench.py --network edsr --size 320x180 -o bench  one of them; minutes
    python tools/bench.py --check bench.json                      warn where a ratio is worse than the committed ones

Every network is timed in all its forms in alternation, and what is reported are ratios to the float network on ONNX
Runtime in the same run. Calibrated models are kept in the folder, so a run that was interrupted goes on.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from benchmark import results
from benchmark.profile import against_roof, kernels
from benchmark.rivals import Images, nncf, onnxruntime_static
from benchmark.roofline import machine_peaks
from benchmark.subjects import SUBJECTS, Subject
from benchmark.variants import OpenVinoFile, Variant
from toolbox import COMMAND, ROOT, SAMPLES, read_json, write_json

from odm_deploy.accounting import count_macs, float_shares
from odm_deploy.bench.timing import Effort, time_runs
from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.cli import odm_deploy
from odm_deploy.errors import OdmError, UsageError
from odm_deploy.files import write_text
from odm_deploy.imaging.pairs import find_pairs
from odm_deploy.lowering.lower import LoweringOptions, lower
from odm_deploy.machine.host import cpu_features, describe_cpu, physical_cpus
from odm_deploy.proof.evaluation import evaluate
from odm_deploy.quantization.calibration_images import CalibrationImages, choose_images
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import calibrate
from odm_deploy.runtimes.base import Runtime
from odm_deploy.terminal import SIZE, run, say

FORMS = ("paper 8", "deploy 8", "integer 8", "integer 4", "integer 2", "engine 8", "engine 4", "exact 8", "exact 4")
"""Profiles and widths. `integer 8 head 8` has the first layer's, too; `quantize --profile deploy` is what that command
makes of the weights, on the same images, with its defaults."""
COMMAND_FORM = "quantize "
FLOAT = "float"
BASE = "float, onnxruntime"
COMMITTED = ROOT / "docs" / "measurements" / "bench.json"


@click.command(context_settings=COMMAND)
@click.option("--network", "networks", multiple=True, type=click.Choice(list(SUBJECTS)), help="Repeatable. [all]")
@click.option("--form", "forms", multiple=True, help="Repeatable: PROFILE BITS [head BITS], or 'quantize OPTIONS'.")
@click.option("--size", "sizes", multiple=True, type=SIZE, metavar="WxH", help="Input; repeatable. [each network's]")
@click.option("--weights", type=click.Path(path_type=Path), help="Folder of weights. [$ODM_WEIGHTS]")
@click.option("--images", type=click.Path(path_type=Path), help="To calibrate on. [the samples of this repository]")
@click.option("--benchmark", type=click.Path(path_type=Path), help="HR and LR_bicubic, to judge by. [the samples]")
@click.option("--nncf-python", type=click.Path(path_type=Path), help="Interpreter of an environment with NNCF.")
@click.option("--seconds", default=60.0, show_default=True, help="To time one network at one size.")
@click.option("--prepare", is_flag=True, help="Only make and judge what will be timed, on a machine that is busy.")
@click.option(
    "-o", "--output", default=Path("bench"), show_default=True, type=click.Path(path_type=Path), help="Folder."
)
@click.option(
    "--check", type=click.Path(path_type=Path, exists=True), help="Compare this bench.json with the committed."
)
def command(
    networks: tuple[str, ...],
    forms: tuple[str, ...],
    sizes: tuple[tuple[int, int], ...],
    weights: Path | None,
    images: Path | None,
    benchmark: Path | None,
    nncf_python: Path | None,
    seconds: float,
    prepare: bool,
    output: Path,
    check: Path | None,
) -> int:
    """Measure, and keep each network's rows as soon as they are known.

    Models of both sides and what they lose are kept in the folder, too, and made once.
    """
    if check is not None:
        worse = results.worse_ratios(read_json(COMMITTED), read_json(check))
        for line in worse:
            say(f"warning: {line}")
        say(f"{len(worse)} ratios are more than {results.TOLERANCE:.0%} worse than in {COMMITTED.relative_to(ROOT)}")
        return 3 if worse else 0
    for form in forms:
        if not form.startswith(COMMAND_FORM):
            _policy(form)
    folder = weights or Path(os.environ.get("ODM_WEIGHTS", ROOT.parent / "shared" / "weights"))
    output.mkdir(parents=True, exist_ok=True)
    path = output / "bench.json"
    document: dict[str, Any] = read_json(path) if path.exists() else {"rows": []}
    if not prepare:
        document |= {"machine": describe_cpu(physical_cpus()), "features": cpu_features(), "peaks": machine_peaks()}
    for name in networks or SUBJECTS:
        subject = SUBJECTS[name]
        wanted = [(height, width) for width, height in sizes] or list(subject.sizes)
        missing = [size for size in wanted if not results.is_known(document, name, size)]
        if not missing:
            continue
        try:
            bench = _Bench(subject, folder, images, benchmark, forms or FORMS, nncf_python, output)
        except OdmError as error:
            say(f"{name} left out: {error}")
            continue
        if prepare:
            bench.lost()
            continue
        for size in missing:
            document["rows"] += bench.rows(size, seconds, document["peaks"])
            write_json(path, document)
    if prepare:
        return 0
    write_text(output / "bench.md", results.markdown(document))
    results.draw(document, output / "bench.png")
    click.echo(results.markdown(document))
    return 0


class _Bench:
    """One network in all its forms."""

    def __init__(
        self,
        subject: Subject,
        weights: Path,
        images: Path | None,
        benchmark: Path | None,
        forms: Sequence[str],
        nncf_python: Path | None,
        output: Path,
    ) -> None:
        self.name = subject.name
        self.network, self.trained = subject.load(weights)
        source = images or SAMPLES / "HR"
        self.call = [*subject.arguments(weights), "--images", str(source)]
        chosen = list(CalibrationImages(choose_images(source, 16), self.network.scale, 96))
        self.images: Images = [image.numpy() for image in chosen]
        self.pairs = [file.load() for file in find_pairs(benchmark or SAMPLES, self.network.scale)]
        self.models = dict(self._models(forms, chosen, output))
        self.output = output
        self.variants = list(self._variants(nncf_python))

    def _models(self, forms: Sequence[str], images: list[torch.Tensor], output: Path) -> Iterator[tuple[str, Any]]:
        for form in forms:
            path = output / f"{self.name}_{form.replace(' ', '')}.pt"
            if not path.exists():
                say(f"{self.name}: calibrating {form}")
                try:
                    if form.startswith(COMMAND_FORM):
                        odm_deploy.main([*shlex.split(form), *self.call, "-o", str(path)], standalone_mode=False)
                    else:
                        save_model(calibrate(self.network, images, _policy(form))[0], path)
                except OdmError as error:
                    say(f"{self.name} {form} left out: {error}")
                    continue
            yield form, load_model(path)

    def _variants(self, nncf_python: Path | None) -> Iterator[Variant]:
        plain = lower(QuantizedModel(self.network))
        yield Variant(FLOAT, "onnxruntime", "fp32", plain)
        yield Variant(FLOAT, "openvino", "fp32", plain)
        bf16 = "AVX512-BF16" in cpu_features() or "AMX-BF16" in cpu_features()
        if bf16:
            yield Variant(FLOAT, "openvino", "bf16", plain)
        yield from self._rivals(plain, nncf_python, bf16)
        for form, model in self.models.items():
            graph = lower(model, LoweringOptions(target="cpu"))
            yield Variant(form, "onnxruntime", "fp32", graph)
            yield Variant(form, "openvino", "fp32", graph)
            if bf16 and not form.startswith("exact") and any(float_shares(model)):
                yield Variant(form, "openvino", "bf16", graph)

    def _rivals(self, plain: Any, nncf_python: Path | None, bf16: bool) -> Iterator[Variant]:
        path = self.output / f"{self.name}_onnxruntime.onnx"
        if not path.exists():
            say(f"{self.name}: onnxruntime.quantization")
            path.write_bytes(onnxruntime_static(plain, self.images))
        static = path.read_bytes()
        yield Variant("onnxruntime.quantization", "onnxruntime", "fp32", static)
        yield Variant("onnxruntime.quantization", "openvino", "fp32", static)
        if nncf_python is None:
            return
        for preset in ("performance", "mixed"):
            folder = self.output / f"{self.name}_nncf"
            path = folder / f"nncf_{preset}.xml"
            if not path.exists():
                say(f"{self.name}: NNCF, {preset}")
                folder.mkdir(exist_ok=True)
                nncf(nncf_python, plain, self.images, preset, folder)
            yield Variant(f"NNCF {preset}", "openvino", "fp32", path)
            if bf16:
                yield Variant(f"NNCF {preset}", "openvino", "bf16", path)

    def rows(self, size: tuple[int, int], seconds: float, peaks: dict[str, float | None]) -> list[dict[str, Any]]:
        """What was measured at one size (height, width), a row for each variant."""
        say(f"{self.name}: timing {len(self.variants)} variants at {size[1]}x{size[0]}")
        image = np.random.default_rng(0).integers(0, 256, (1, 3, *size)).astype(np.float32)
        with ExitStack() as stack:
            opened: dict[str, Runtime | OpenVinoFile] = {}
            for variant in self.variants:
                try:
                    opened[variant.key] = variant.open(size)
                except OdmError as error:
                    say(f"{self.name}, {variant.key} left out: {error}")
                    continue
                stack.callback(opened[variant.key].close)
            runs = time_runs(list(opened.values()), {"input": image}, Effort(seconds=seconds))
        latencies = {key: [each.latency_ms for each in times] for key, times in zip(opened, runs, strict=True)}
        lost = self.lost()
        base = np.array(latencies[BASE])
        scale = self.network.scale
        macs = count_macs(self.network, (size[0] * scale, size[1] * scale))
        return [
            {
                "network": self.name,
                "size": list(size),
                "variant": variant.key,
                "ms": float(np.median(latencies[variant.key])),
                "spread_ms": [float(q) for q in np.percentile(latencies[variant.key], (25, 75))],
                "speedup": float(np.median(base) / np.median(latencies[variant.key])),
                "lost_db": lost.get(variant.key),
                "int8_share": self._int8_share(variant),
                "roof": self._roof(variant, size, macs, peaks),
            }
            for variant in self.variants
            if variant.key in latencies
        ]

    def lost(self) -> dict[str, float]:
        """PSNR-Y lost against the float network on ONNX Runtime, in dB; nothing for random weights."""
        if not self.trained:
            return {}
        path = self.output / f"{self.name}_psnr.json"
        found: dict[str, float] = read_json(path) if path.exists() else {}
        for variant in self.variants:
            if variant.key not in found:
                found[variant.key] = self._psnr(variant)
                write_json(path, found)
        return {key: found[BASE] - value for key, value in found.items()}

    def _psnr(self, variant: Variant) -> float:
        qualities: list[float] = []
        for pair in self.pairs:
            opened = variant.open((pair.low.shape[0], pair.low.shape[1]))
            qualities += evaluate(opened.upscale, [pair], self.network.scale).psnr_y_db
            opened.close()
        return float(np.mean(qualities))

    def _int8_share(self, variant: Variant) -> float | None:
        """Share of the multiply-adds on integer grids; None for rivals, whose graphs do not tell."""
        if variant.name == FLOAT:
            return 0.0
        model = self.models.get(variant.name)
        return None if model is None else 1.0 - sum(each.macs_share for each in float_shares(model))

    def _roof(
        self, variant: Variant, size: tuple[int, int], macs: dict[str, int], peaks: dict[str, float | None]
    ) -> dict[str, Any] | None:
        """How our models' convolutions compare with what the machine can do, where OpenVINO tells."""
        if variant.name not in self.models or variant.runtime != "openvino" or variant.precision != "fp32":
            return None
        assert not isinstance(variant.model, (bytes, Path))
        found = kernels(variant.model, size)
        total = sum(kernel.ms for kernel in found)
        by_kind: dict[str, float] = {}
        for kernel in found:
            by_kind[kernel.kind] = by_kind.get(kernel.kind, 0.0) + kernel.ms / total
        layers = against_roof(found, macs, peaks)
        return {
            "share_of_time": {kind: round(share, 3) for kind, share in by_kind.items() if share > 0.01},
            "layers": [[name, precision, round(ms, 3), round(part, 3)] for name, precision, ms, part in layers],
        }


def _policy(form: str) -> QuantizationPolicy:
    match form.split():
        case [profile, bits]:
            return QuantizationPolicy.parse(profile, bits)
        case [profile, bits, "head", head]:
            return QuantizationPolicy.parse(profile, bits, head=head)
        case _:
            raise UsageError(f"no form {form!r}", fix="write --form 'integer 8', or --form 'integer 8 head 8'")


if __name__ == "__main__":
    run(command, "bench")
