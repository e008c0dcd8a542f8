"""`verify`: proof that a runtime computes from a bundle what the reference model computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from odm_deploy.bundle import Bundle
from odm_deploy.bundle.manifest import ONNX_FILE
from odm_deploy.errors import BuildError, GateError, InputError, MissingError, UsageError
from odm_deploy.imaging.pairs import SampleFile, find_samples
from odm_deploy.lowering.receptive_field import receptive_radius_px
from odm_deploy.networks.running import check_sizes
from odm_deploy.progress import Say, Track, counted, silent, untracked
from odm_deploy.proof.golden import GoldenReport, changed_layers, check_golden
from odm_deploy.proof.graph_check import GraphCheck
from odm_deploy.proof.layer_parity import LayerParity
from odm_deploy.proof.lowered_again import check_graphs
from odm_deploy.proof.parity import compare
from odm_deploy.proof.parity_report import ParityReport
from odm_deploy.proof.reference import reference_of
from odm_deploy.proof.teacher_forced_layers import LAYER_IMAGES, center_crops, compare_layers
from odm_deploy.proof.teacher_forcing import forced_engine_opener
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import FAITHFUL_FIRST, open_runtime


@dataclass(frozen=True)
class VerifyOptions:
    """What is compared with what, and how thoroughly."""

    against: Path | None = None
    """The model.pt; None takes the one the bundle names."""
    truth: Path | None = None
    """Folder of ground truth; None finds HR beside LR_bicubic/X4, and goes without where there is none."""
    runtime: str | None = None
    """The runtime to prove; None takes TensorRT where the plan and its GPU are, else ONNX Runtime."""
    max_images: int | None = None
    """Take only the first so many images; None takes all."""
    layers: bool = True
    """Whether to compare the codes of every layer too, teacher-forced."""
    threads: int | None = None
    """CPU threads of the runtime; None takes one a physical core."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the layers that are not int8 (bf16: OpenVINO only)."""

    def __post_init__(self) -> None:
        if self.max_images is not None and self.max_images < 1:
            raise UsageError(f"at most {self.max_images} images", why="without any, nothing is proven")

    @property
    def runtime_options(self) -> RuntimeOptions:
        """How the model is to be run."""
        return RuntimeOptions(threads=self.threads, precision=self.precision)


def verify(
    bundle: Bundle | Path | str,
    images: Path | str,
    options: VerifyOptions = VerifyOptions(),
    *,
    say: Say = silent,
    track: Track = untracked,
) -> ParityReport:
    """Compare a runtime with the reference on real images: layer by layer, end to end, and on golden outputs.

    The graph has to be the one that the model.pt lowers to, in every constant. The same image bytes go through the
    fake-quantized torch model and the runtime. Whether what differs is more than rounding explains is for
    `ParityReport.failures` to say:

    >>> report = verify("model/", "Set5/LR_bicubic/X4")  # doctest: +SKIP
    >>> report.failures(), report.distance.identical     # doctest: +SKIP
    ([], 1.0)

    Args:
        bundle: a bundle, a model.onnx or an engine.plan.
        images: the network's input images: a folder, a file or a glob pattern.
        options: what to compare with, where, and how thoroughly.
        say: takes lines about what was passed over or left out.
        track: shows progress over the lowering, the layers and the images.

    Raises:
        InputError: the bundle, its model.pt or an image is unusable, or its outputs cannot be compared.
        UsageError: there is nothing to compare with, no such runtime or option of it, or an image of a size that
            somebody's network does not take.
        MissingError: no runtime for it is installed here.
        GateError: the graph of an exact bundle was changed, and no runtime takes what it is now.
    """
    opened = Bundle.open(bundle)
    model = reference_of(opened, options.against)
    files = find_samples(Path(images), options.truth, model.scale, options.max_images)
    with judging_changes(opened), open_faithful(opened, options) as runtime:
        return prove(opened, model, runtime, files, options, say=say, track=track)


@contextmanager
def judging_changes(bundle: Bundle) -> Generator[None]:
    """Turn a graph that nothing takes into a verdict, if it is not the one that was written.

    A wrong number may also be one that no runtime takes; then the verdict is no, and its layer is known.

    Raises:
        GateError: the graph of an exact bundle was changed, and what ran within found it unusable.
    """
    try:
        yield
    except InputError as error:
        if bundle.golden is not None and bundle.onnx_path is not None:
            changed = changed_layers(bundle.golden, bundle.graph)
            if changed:
                named = ", ".join(name or "its inputs and outputs" for name in changed)
                raise GateError(f"{bundle} is not what was written: {named}", why=str(error)) from error
        raise


def open_faithful(bundle: Bundle, options: VerifyOptions) -> Runtime:
    """Open a bundle on the runtime that is to be proven. Raises as `open_runtime` does."""
    return open_runtime(bundle, options.runtime, options.runtime_options, order=FAITHFUL_FIRST)


def prove(
    bundle: Bundle,
    model: QuantizedModel,
    runtime: Runtime,
    files: list[SampleFile],
    options: VerifyOptions,
    *,
    say: Say,
    track: Track,
) -> ParityReport:
    """`verify` of what is open already: the reference, and the bundle on its runtime. Raises as it does."""
    if model.network.is_foreign:
        lows = (file.load().low for file in files)
        check_sizes(model.network, ((low.shape[0], low.shape[1]) for low in lows))
    for reason in runtime.passed_over:
        say(f"passed over: {reason}")
    taken, layers = bundle.seen_by(runtime.name), list[LayerParity]()
    graphs = list[GraphCheck]()
    if bundle.onnx_path is None:
        say("the graph is not compared with what model.pt lowers to: there is no model.onnx")
    else:
        graphs = check_graphs([bundle, *([] if taken is bundle else [taken])], model, track=track)
    if options.layers:
        few = files[:LAYER_IMAGES]
        layers = _compare_layers(taken, model, runtime, few, options, say, track)
        if taken is not bundle:
            # What runs elsewhere is proven, too, as far as it can be here.
            others = _compare_layers(bundle, model, runtime, few, options, say, track)
            layers += [dataclasses.replace(layer, name=f"{ONNX_FILE}: {layer.name}") for layer in others]
    samples = track((file.load() for file in files), len(files))
    try:
        report = compare(model, runtime, samples, layers)
    except InputError as error:
        raise InputError(f"cannot compare {bundle} with its reference", why=str(error)) from error
    report.golden = _check_golden(taken, runtime, options, say)
    report.changed = bundle.is_changed or taken.is_changed
    report.contradictions = contradictions(bundle, model)
    report.graphs = graphs
    # Not before: of a graph that cannot be compared at all, it is beside the point.
    for remark in filter(None, (graph.remark for graph in graphs)):
        say(remark)
    return report


def contradictions(bundle: Bundle, model: QuantizedModel) -> list[str]:
    """What the manifest says of the model and is not so, one clause each.

    Whoever upscales goes by it: of a radius too small, tiles show their seams.

    Raises:
        InputError: a damaged manifest, or an unreadable graph.
    """
    manifest = bundle.manifest
    if manifest is None:
        return []
    found: list[str] = []
    if manifest.scale != model.scale:
        found.append(f"the manifest says scale {manifest.scale}, the model's is {model.scale}")
    stated = manifest.receptive_radius_px
    if stated is not None and bundle.onnx_path is not None:
        needed = receptive_radius_px(bundle.graph)
        if needed is None or stated < needed:
            seen = "sees the whole image" if needed is None else f"sees {counted(needed, 'pixel')} far"
            found.append(f"the manifest says that an output pixel sees {counted(stated, 'pixel')} far, but it {seen}")
    return found


def _compare_layers(
    bundle: Bundle,
    model: QuantizedModel,
    runtime: Runtime,
    files: list[SampleFile],
    options: VerifyOptions,
    say: Say,
    track: Track,
) -> list[LayerParity]:
    """Teacher-forced flip rates on the centers of a few images; empty where the layers cannot be told apart."""
    if bundle.onnx_path is None:
        say("layers not compared: there is no model.onnx to see them in")
        return []
    lowered = bundle.graph
    crops = center_crops(file.load().low for file in files)
    if runtime.model_kind == "onnx":
        return compare_layers(model, lowered, _opener(runtime, options), crops, track=track)
    height, width = (min(crop.shape[axis] for crop in crops) for axis in (2, 3))
    tf32 = bool(bundle.engine_facts.get("tf32", True))
    say(f"building an engine for {height}x{width} whose layers can be told apart")
    try:
        opener = forced_engine_opener(runtime, lowered, (height, width), tf32=tf32)
        return compare_layers(model, lowered, opener, [crop[:, :, :height, :width] for crop in crops], track=track)
    except (BuildError, MissingError) as error:
        say(f"layers not compared: {error}")
        return []


def _check_golden(bundle: Bundle, runtime: Runtime, options: VerifyOptions, say: Say) -> GoldenReport | None:
    """The golden images of an exact bundle on the runtime; None where the bundle has none, or an engine takes none."""
    if bundle.golden is None:
        return None
    lowered = None if bundle.onnx_path is None else bundle.graph
    opener = _opener(runtime, options) if options.layers and runtime.model_kind == "onnx" else None
    try:
        return check_golden(bundle.golden, runtime, lowered, opener)
    except InputError as error:
        if runtime.model_kind == "onnx":
            raise
        say(f"golden outputs not compared: {error}")
        return None


def _opener(runtime: Runtime, options: VerifyOptions) -> Callable[[bytes], Runtime]:
    """What opens other graphs as the one under test was opened."""
    return partial(type(runtime).open_bytes, options=options.runtime_options)
