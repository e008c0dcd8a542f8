"""`benchmark`: time a model and its float twin on one input shape."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from odm_deploy.bench.gpu_watch import watch_gpu
from odm_deploy.bench.limits import Limits, find_limits
from odm_deploy.bench.report import BenchReport, LayerTime, Measurement
from odm_deploy.bench.steadiness import time_steadily
from odm_deploy.bench.timing import Effort, time_queued
from odm_deploy.bench.twin import open_twin
from odm_deploy.building.layer_table import recorded_layers
from odm_deploy.bundle import Bundle
from odm_deploy.errors import InputError, OdmError, UsageError
from odm_deploy.graphs.input_shapes import Shape
from odm_deploy.progress import Say, Track, silent, untracked
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.registry import open_runtime
from odm_deploy.runtimes.tensor_info import Array
from odm_deploy.runtimes.tensorrt.engine import TensorRtEngine

_SEED = 0
_PROFILED_RUNS = 10


def benchmark(
    model: Bundle | Path | str,
    runtime: str | None = None,
    *,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    options: RuntimeOptions | None = None,
    effort: Effort | None = None,
    baseline: bool = True,
    track: Track = untracked,
    say: Say = silent,
) -> BenchReport:
    """Time a bundle, model.onnx or engine.plan beside its float twin.

    Args:
        model: what to time; it takes one batch of RGB images.
        runtime: where; None takes the fastest runtime that works here.
        size: (height, width) of the input in pixels; None takes what the model is fixed to or tuned for.
        batch: images a run.
        options: threads and precision, the same for both.
        effort: how long to measure.
        baseline: whether to time the float twin too.
        track: shows progress.
        say: is told where the measurement takes much longer than was asked for.

    Raises:
        InputError: the model is unusable, takes no images, or not of this size.
        MissingError: no runtime for it is installed here.
        UsageError: an unknown runtime, or a size or batch below 1.
    """
    if batch < 1 or (size is not None and min(size) < 1):
        raise UsageError(f"cannot time a batch of {batch} images of {size}", why="there is nothing to compute")
    bundle = Bundle.open(model, "a bundle is wanted, a model.onnx or an engine.plan")
    with ExitStack() as stack:
        watch, gpu_note = stack.enter_context(watch_gpu())
        opened = stack.enter_context(open_runtime(bundle, runtime, options))
        shape = _image_shape(opened, size, batch)
        # Random images: no runtime here is faster or slower for what an image shows.
        images = _random_images(shape, bundle)
        feeds = {opened.inputs[0].name: opened.inputs[0].images.from_rgb(images)}
        output = opened.run(feeds)[opened.outputs[0].name]
        if watch is not None:
            # Before the twin is built and opened, which is no part of what the model needs.
            watch.model_is_ready()
        twin, note = None, "it was not asked for"
        if baseline:
            try:
                twin, note = open_twin(bundle, opened, shape, options)
            except OdmError as error:
                # A benchmark without baseline is still one.
                note = str(error)
        timed = [opened] if twin is None else [opened, stack.enter_context(twin)]
        if watch is not None:
            watch.timing_begins()
        timing = time_steadily(timed, feeds, effort, track, say, base=len(timed) - 1)[0]
        queued_ms = time_queued(timed, feeds, [timing.runs, timing.base])
        at_best = None if timing.steady or twin is None else timing.at_best
        state = watch.finish() if watch is not None and opened.on_gpu else None
        pixels = output.size // 3
        limits = _limits(bundle, opened, shape)
        return BenchReport(
            opened.name,
            opened.device,
            shape,
            Measurement.of(bundle.path.name or str(bundle), timing.runs, batch, pixels, queued_ms[0]),
            Measurement.of(note, timing.base, batch, pixels, queued_ms[1]) if twin is not None else None,
            "" if twin is not None else note,
            opened.describe(),
            opened.passed_over,
            tuple(filter(None, (opened.speed_note, *(limits.sentences() if limits else ())))),
            limits.layers if limits else (),
            _layer_times(bundle, opened, feeds),
            state,
            gpu_note if opened.on_gpu else "",
            None if at_best is None else at_best.speedup,
        )


def _limits(bundle: Bundle, runtime: Runtime, shape: Shape) -> Limits | None:
    """What keeps int8 from being faster; None where there is no graph to tell from."""
    try:
        # A runtime that loads ONNX does not tell what it runs as int8, and the bundle's plan says nothing about it.
        layers = recorded_layers(bundle.engine_facts) if runtime.model_kind == "plan" else ()
        return find_limits(bundle.graph, layers, shape)
    except InputError:
        return None


def _layer_times(bundle: Bundle, runtime: Runtime, feeds: Mapping[str, Array]) -> tuple[LayerTime, ...]:
    """Where an engine's time goes; nothing for other runtimes, and where TensorRT does not tell."""
    if not isinstance(runtime, TensorRtEngine):
        return ()
    try:
        times_ms = runtime.layer_times_ms(feeds, _PROFILED_RUNS)
    except OdmError:
        return ()
    return LayerTime.of(times_ms, recorded_layers(bundle.engine_facts))


def _random_images(shape: tuple[int, ...], model: Bundle) -> NDArray[np.uint8]:
    try:
        return np.random.default_rng(_SEED).integers(0, 256, shape, np.uint8)
    except ValueError as error:
        why = f"it takes images of {'x'.join(map(str, shape))}, more than any memory holds"
        raise InputError(f"cannot time {model}", why=why) from error


def _image_shape(runtime: Runtime, size: tuple[int, int] | None, batch: int) -> Shape:
    """[N, 3, H, W] to time, whatever the layout of the model's own input."""
    if len(runtime.inputs) != 1 or len(runtime.inputs[0].shape) != 4:
        raise InputError(
            f"cannot time this model on {runtime.name}",
            why=f"its inputs {[info.name for info in runtime.inputs]} are not one batch of images",
        )
    info = runtime.inputs[0]
    n, c, h, w = runtime.typical_shape()
    if info.images.layout == "nhwc":
        c, h, w = w, c, h
    height, width = size or (h, w)
    return (batch if batch != 1 or info.shape[0] is None else n, c, height, width)
