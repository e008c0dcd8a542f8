"""One network in every form that is timed: ours calibrated, rivals quantized, kept in a folder; and what each loses."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from toolbox import SAMPLES, read_json, write_json

from benchmark.instructions import has_bf16
from benchmark.profile import against_roof, kernels
from benchmark.rivals import Images, nncf, onnxruntime_static
from benchmark.subjects import Subject
from benchmark.variants import Variant
from odm_deploy.accounting import count_macs, float_shares
from odm_deploy.bench.steadiness import Timing, deciding_ms
from odm_deploy.bench.timing import Percentiles
from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.cli.program import odm_deploy
from odm_deploy.errors import OdmError, UsageError
from odm_deploy.imaging.pairs import find_pairs
from odm_deploy.imaging.reading import choose_images
from odm_deploy.lowering.lower import LoweringOptions, lower
from odm_deploy.machine.host import adds_in_16_bits
from odm_deploy.proof.evaluation import evaluate
from odm_deploy.quantization.calibration_images import CalibrationImages
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import calibrate
from odm_deploy.terminal import say

FORMS = ("paper 8", "deploy 8", "integer 8", "integer 4", "integer 2", "engine 8", "engine 4", "exact 8", "exact 4")
"""Profiles and widths. `integer 8 head 8` has the first layer's, too; `quantize --profile deploy` is what that command
makes of the weights, on the same images, with its defaults."""
COMMAND_FORM = "quantize "
FLOAT = "float"


class Forms:
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
                        save_model(calibrate(self.network, images, policy_of(form))[0], path)
                except OdmError as error:
                    say(f"{self.name} {form} left out: {error}")
                    continue
            yield form, load_model(path)

    def _variants(self, nncf_python: Path | None) -> Iterator[Variant]:
        plain = lower(QuantizedModel(self.network))
        yield Variant(FLOAT, "onnxruntime", "fp32", plain)
        yield Variant(FLOAT, "openvino", "fp32", plain)
        bf16 = has_bf16()
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
        # Each has a setting for CPUs without VNNI, which is none of its defaults.
        choices = (False, True) if adds_in_16_bits() else (False,)
        for seven_bits in choices:
            setting = " reduce_range" if seven_bits else ""
            path = self.output / f"{self.name}_onnxruntime{setting.replace(' ', '_')}.onnx"
            if not path.exists():
                say(f"{self.name}: onnxruntime.quantization{setting}")
                onnxruntime_static(plain, self.images, path, seven_bits=seven_bits)
            yield Variant(f"onnxruntime.quantization{setting}", "onnxruntime", "fp32", path)
            yield Variant(f"onnxruntime.quantization{setting}", "openvino", "fp32", path)
        if nncf_python is None:
            return
        folder = self.output / f"{self.name}_nncf"
        for preset, seven_bits in itertools.product(("performance", "mixed"), choices):
            setting = f"{preset} overflow_fix" if seven_bits else preset
            path = folder / f"nncf_{setting.replace(' ', '_')}.xml"
            if not path.exists():
                say(f"{self.name}: NNCF, {setting}")
                folder.mkdir(exist_ok=True)
                nncf(nncf_python, plain, self.images, path, preset=preset, seven_bits=seven_bits)
            yield Variant(f"NNCF {setting}", "openvino", "fp32", path)
            if bf16:
                yield Variant(f"NNCF {setting}", "openvino", "bf16", path)

    @property
    def base(self) -> Variant:
        """What the others are compared with: the float network on ONNX Runtime."""
        return self.variants[0]

    def row(self, key: str, timing: Timing, size: tuple[int, int], peaks: dict[str, float | None]) -> dict[str, Any]:
        """What is kept of one variant at one size (height, width)."""
        mine, base = (Percentiles.of(deciding_ms(runs)) for runs in (timing.runs, timing.base))
        at_best = timing.at_best
        variant = next(each for each in self.variants if each.key == key)
        return {
            "network": self.name,
            "size": list(size),
            "variant": key,
            "ms": mine.p50,
            "spread_ms": [mine.p25, mine.p75],
            "speedup": base.p50 / mine.p50,
            "steady": timing.steady,
            "best_ms": None if at_best is None else at_best.ms,
            "best_speedup": None if at_best is None else at_best.speedup,
            "lost_db": self.lost().get(key),
            "int8_share": self._int8_share(variant),
            "roof": self._roof(variant, size, peaks),
        }

    def lost(self) -> dict[str, float]:
        """PSNR-Y lost against the float network on ONNX Runtime, in dB; nothing for random weights."""
        if not self.trained:
            return {}
        path = self.output / f"{self.name}_psnr.json"
        found: dict[str, float] = read_json(path) if path.exists() else {}
        for variant in self.variants:
            if variant.key in found:
                continue
            try:
                found[variant.key] = self._psnr(variant)
            except OdmError as error:
                say(f"{self.name}: {variant.key} is not judged: {error}")
                continue
            write_json(path, found)
        return {key: found[self.base.key] - value for key, value in found.items()}

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

    def _roof(self, variant: Variant, size: tuple[int, int], peaks: dict[str, float | None]) -> dict[str, Any] | None:
        """How our models' convolutions compare with what the machine can do, where OpenVINO tells."""
        if variant.name not in self.models or variant.runtime != "openvino" or variant.precision != "fp32":
            return None
        assert not isinstance(variant.model, Path)
        height, width = (pixels * self.network.scale for pixels in size)
        macs = count_macs(self.network, (height, width))
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


def policy_of(form: str) -> QuantizationPolicy:
    """The policy that `PROFILE BITS` or `PROFILE BITS head BITS` names.

    Raises:
        UsageError: it names none.
    """
    match form.split():
        case [profile, bits]:
            return QuantizationPolicy.parse(profile, bits)
        case [profile, bits, "head", head]:
            return QuantizationPolicy.parse(profile, bits, head=head)
        case _:
            raise UsageError(f"no form {form!r}", fix="write --form 'integer 8', or --form 'integer 8 head 8'")
