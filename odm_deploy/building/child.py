"""The process in which a TensorRT builder runs: `python -m odm_deploy.building.child`.

Builders are native code that a bad graph can crash (a scale computed at run time segfaults TensorRT-RTX 1.7), hang or
starve of memory, so `build.build_engine` never calls one in its own process. What the two say to each other:

* stdin: one JSON object, the fields of `BuildRequest`. Without a whole one the child ends: its parent has gone.
* stdout: one JSON object a line, each with an `event`: `phase`, `step` and `finished` while building, and last `done`
  or `failed`.
* the log file: every line the builder logs, flushed as it comes, so that a crash leaves the builder's last words.

One code path serves `tensorrt` 10.13 to 11 and `tensorrt_rtx`: networks are always strongly typed (precision lives in
the ONNX graph), and nothing that TensorRT 11 removed is named.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from odm_deploy.building.options import HARDWARE_LEVELS, BuildOptions, BuildRequest
from odm_deploy.errors import BuildError
from odm_deploy.files import atomic_path
from odm_deploy.machine.builders import TENSORRT_RTX

_ERRORS = ("INTERNAL_ERROR", "ERROR")


class Channel:
    """Writes events as JSON lines. Reports to a parent that is gone are dropped: the build is being cancelled."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.open = True

    def send(self, event: str, **values: Any) -> None:
        """Send one event."""
        try:
            self._stream.write(json.dumps({"event": event, **values}) + "\n")
            self._stream.flush()
        except OSError:
            self.open = False


def make_logger(trt: Any, log: TextIO) -> Any:
    """A TensorRT logger that writes everything to `log`, one `SEVERITY message` a record, and keeps what matters."""

    class FileLogger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            name = getattr(severity, "name", str(severity)).rsplit(".", 1)[-1]
            log.write(f"[{name}] {message}\n")
            log.flush()
            if name in _ERRORS:
                self.errors.append(message)
            elif name == "WARNING":
                self.warnings.append(message)

    return FileLogger()


def make_monitor(trt: Any, channel: Channel) -> Any:
    """A TensorRT progress monitor that forwards its phases, and cancels the build when nobody listens any more."""

    class ChannelMonitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            channel.send("phase", name=phase_name, parent=parent_phase, steps=num_steps)

        def phase_finish(self, phase_name: str) -> None:
            channel.send("finished", name=phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            channel.send("step", name=phase_name, step=step)
            return channel.open

    return ChannelMonitor()


def build(request: BuildRequest, channel: Channel, log: TextIO) -> dict[str, Any]:
    """Parse, build and write one engine; returns what `done` reports.

    Raises:
        BuildError: the parser or the builder refused; `why` holds its own words.
    """
    trt = importlib.import_module(request.builder)
    logger = make_logger(trt, log)
    started = time.perf_counter()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    # From a file, not from bytes: the parser then finds weights stored beside the graph.
    if not parser.parse_from_file(request.onnx):
        words = [_parser_words(parser.get_error(index)) for index in range(parser.num_errors)]
        raise BuildError(f"the {request.builder} parser refused {request.onnx}", why="; ".join(words or logger.errors))
    config = builder.create_builder_config()
    cache = configure(trt, builder, config, network, request.options)
    # Python keeps no reference through the config: without this name the monitor would be collected mid-build.
    monitor = make_monitor(trt, channel)
    config.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise BuildError(
            f"{request.builder} could not build {request.onnx}", why="; ".join(logger.errors) or "it gave no reason"
        )
    plan = bytes(serialized)
    Path(request.plan).write_bytes(plan)
    if cache is not None and request.options.timing_cache is not None:
        with atomic_path(request.options.timing_cache) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    return {
        "seconds": time.perf_counter() - started,
        "version": str(trt.__version__),
        "inputs": {each.name: list(each.shape) for each in map(network.get_input, range(network.num_inputs))},
        "warnings": list(dict.fromkeys(logger.warnings)),
        "inspection": None if request.builder == TENSORRT_RTX else _inspect(trt, logger, plan),
    }


def configure(trt: Any, builder: Any, config: Any, network: Any, options: BuildOptions) -> Any:
    """Fill a builder's `config` from the options; returns the timing cache in use, None without one."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware != "this":
        level = HARDWARE_LEVELS[options.hardware]
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, name in enumerate(options.compute_capabilities):
            target = getattr(trt.ComputeCapability, name, None)
            if target is None or not config.set_compute_capability(target, index):
                known = ", ".join(sorted(set(trt.ComputeCapability.__members__) - {"NONE"}))
                fix = "leave the compute capability out for the default: all of these but SM75"
                raise BuildError(f"{options.builder} cannot build for {name}", why=f"it knows {known}", fix=fix)
    profile = builder.create_optimization_profile()
    for graph_input in map(network.get_input, range(network.num_inputs)):
        profile.set_shape(graph_input.name, *options.shapes.for_input(tuple(graph_input.shape), graph_input.name))
    config.add_optimization_profile(profile)
    if (stored := options.timing_cache) is None:
        return None
    cache = config.create_timing_cache(stored.read_bytes() if stored.exists() else b"")
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        # Timings of another GPU or version would choose wrong kernels: begin anew, and replace the file.
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _parser_words(error: Any) -> str:
    """One parser error as a line: the node it is about, then what the parser says."""
    node = f"{error.node_name()} [{error.node_operator()}]: " if error.node_name() or error.node_operator() else ""
    return node + " ".join(error.desc().split())


def _inspect(trt: Any, logger: Any, plan: bytes) -> str | None:
    """The engine inspector's JSON of a freshly built plan, None if this machine cannot load it."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    return engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)


def main() -> int:
    """Serve one request from stdin. Exit code 0 after `done`, 1 after `failed`; a crash leaves neither."""
    # Native code prints to file descriptor 1 when it likes; keep the protocol's stream to ourselves.
    channel = Channel(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    request = BuildRequest.from_json(sys.stdin.read())
    with Path(request.log).open("a") as log:
        try:
            answer = build(request, channel, log)
        except BuildError as error:
            channel.send("failed", what=error.what, why=error.why, fix=error.fix)
            return 1
        except (MemoryError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            channel.send("failed", what=f"{request.builder} failed", why=f"{type(error).__name__}: {error}", fix="")
            return 1
    channel.send("done", **answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
