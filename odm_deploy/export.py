"""Bundles: a directory with `model.onnx`, `manifest.json` and, where a builder is installed, `engine.plan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from odm_deploy.building.build import BuildReport
from odm_deploy.building.bundle_engine import build_bundle_engine, describe_engine
from odm_deploy.building.options import BuildOptions
from odm_deploy.building.padded import padded_before
from odm_deploy.building.parent import BuildProgress
from odm_deploy.bundle import Bundle
from odm_deploy.bundle.golden import golden_images
from odm_deploy.bundle.manifest import CPU_ONNX_FILE, ONNX_FILE, PLAN_FILE, Manifest
from odm_deploy.errors import InputError
from odm_deploy.files import atomic_directory, file_sha256, path_from
from odm_deploy.imaging.pixels import to_pixels
from odm_deploy.lowering.lower import LoweringOptions, lower_each
from odm_deploy.lowering.receptive_field import receptive_radius_px
from odm_deploy.lowering.written_by import written_by
from odm_deploy.machine.builders import choose_builder
from odm_deploy.progress import Say, Track, counted, untracked
from odm_deploy.proof.golden import golden_of
from odm_deploy.quantization.exact.trace import integer_program
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.version import __version__


def write_bundle(
    model: QuantizedModel,
    checkpoint: Path,
    folder: Path,
    lowering: LoweringOptions,
    engine: BuildOptions | None,
    say: Say,
    on_progress: Callable[[BuildProgress], None] | None = None,
    *,
    for_cpus: bool = False,
    track: Track = untracked,
) -> Bundle:
    """Lower a model and write its bundle, atomically: `folder` appears whole or not at all.

    Args:
        model: what to deploy.
        checkpoint: the `model.pt` it was read from; recorded in the manifest.
        folder: the bundle to write; an older bundle there is replaced.
        lowering: how to write the ONNX file.
        engine: how to build an engine; None leaves it out.
        say: takes a line of progress.
        on_progress: takes the builder's progress.
        for_cpus: whether to add `model.cpu.onnx`, which runtimes on CPUs then take.
        track: shows how far the lowering has come.

    Returns:
        The bundle; without a plan where no engine was asked for, or none could be built on this machine.

    Raises:
        InputError: the model cannot be lowered, or `folder` is something else than a bundle.
        BuildError: the builder refused, crashed or ran out of time.
        MissingError: the builder that was asked for by name is not installed.
    """
    if engine is not None and engine.builder is not None:
        # A builder that is not here is better known before the lowering than after it.
        choose_builder(engine.builder)
    with atomic_directory(folder) as temporary:
        say("lowering to ONNX")
        ways = [lowering, *([dataclasses.replace(lowering, target="cpu")] if for_cpus else [])]
        protos: dict[str, onnx.ModelProto] = dict(
            zip((ONNX_FILE, CPU_ONNX_FILE), lower_each(model, ways, track=track), strict=False)
        )
        for name, proto in protos.items():
            (temporary / name).write_bytes(proto.SerializeToString(deterministic=True))
        built = None
        # The builder is another process, and needs one core.
        with ThreadPoolExecutor(1) as beside:
            golden = None
            if model.exact is not None:
                say("golden outputs, in integers")
                golden = beside.submit(_write_golden, model, protos, temporary)
            if engine is not None:
                _warn_of_padding(protos[ONNX_FILE], say)
                built = build_bundle_engine(temporary / ONNX_FILE, temporary / PLAN_FILE, engine, say, on_progress)
            if golden is not None:
                golden.result()
        # Seen from the bundle, unless an absolute path was given: commands run in any folder.
        seen = str(checkpoint) if checkpoint.is_absolute() else path_from(folder, checkpoint)
        described = {
            name: _describe_graph(model, proto, temporary / name, way)
            for (name, proto), way in zip(protos.items(), ways, strict=True)
        }
        radius = receptive_radius_px(protos[ONNX_FILE])
        _describe(model, checkpoint, seen, described, radius, built).write(temporary)
    return Bundle.open(folder)


def _warn_of_padding(proto: onnx.ModelProto, say: Say) -> None:
    """Say in time, before anybody measures it, what costs most of int8's speed on a GPU."""
    if padded := padded_before(proto):
        these = f"{counted(padded, 'convolution')} {'needs' if padded == 1 else 'need'}"
        say(
            f"note: {these} kernels of their own to pad their input, which can make int8 slower "
            "than fp16 on a GPU; models of quantize --profile engine, or --symmetric, need none"
        )


def _write_golden(model: QuantizedModel, protos: dict[str, onnx.ModelProto], folder: Path) -> None:
    """Write down what an exact model computes; refuse where torch computes something else than integers do."""
    golden, outputs = golden_of(integer_program(model), protos[ONNX_FILE], protos.get(CPU_ONNX_FILE))
    for name, image in golden_images().items():
        found = to_pixels(model(torch.from_numpy(image).float()).numpy())
        if not np.array_equal(found, outputs[name][0].transpose(1, 2, 0)):
            raise InputError(f"{model.network.title} is not exact", why=f"torch and integers differ on {name!r}")
    golden.write(folder)


def _describe_graph(
    model: QuantizedModel, proto: onnx.ModelProto, path: Path, lowering: LoweringOptions
) -> dict[str, Any]:
    facts: dict[str, Any] = {"sha256": file_sha256(path), "opset": proto.opset_import[0].version}
    facts |= {**dataclasses.asdict(lowering), "written_by": written_by(model)}
    if path.name == CPU_ONNX_FILE:
        # ONNX Runtime gains where outputs of convolutions are quantized, and rounds the biases of those it fuses.
        facts["runtimes"] = ["openvino", *(["onnxruntime"] if model.signals else [])]
    return facts


def _describe(
    model: QuantizedModel,
    checkpoint: Path,
    seen: str,
    graphs: dict[str, dict[str, Any]],
    radius: int | None,
    built: BuildReport | None,
) -> Manifest:
    return Manifest(
        created_by=f"odm-deploy {__version__}",
        network={"name": model.network.name, "scale": model.scale, "config": model.network.config.to_dict()},
        checkpoint={"path": seen, "sha256": file_sha256(checkpoint)},
        onnx=graphs[ONNX_FILE],
        cpu_onnx=graphs.get(CPU_ONNX_FILE),
        receptive_radius_px=radius,
        layers={
            name: {"grid": layer.grid.to_dict(), "weight_bits": layer.weight_bits}
            for name, layer in model.layers.items()
        },
        signals={name: {"grid": signal.grid.to_dict()} for name, signal in model.signals.items()},
        exact=None if model.exact is None else {**dataclasses.asdict(model.exact), "tf32": False},
        engine=None if built is None else describe_engine(built),
    )
