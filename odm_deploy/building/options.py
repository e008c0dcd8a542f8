"""How an engine is to be built: the options of `build_engine`, of `export` and of `build`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from odm_deploy.errors import UsageError
from odm_deploy.graphs.input_shapes import PRESETS, InputShapes
from odm_deploy.machine.builders import TENSORRT, TENSORRT_RTX, builder_name

HARDWARE_LEVELS = {"this": "NONE", "same-capability": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}
"""What users call it -> a name in TensorRT's HardwareCompatibilityLevel."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine.

    Raises:
        UsageError: an option that makes no sense, whatever the machine.
    """

    builder: str | None = None
    """`tensorrt` or `tensorrt_rtx`; None takes what can build here (`choose_builder`)."""
    shapes: InputShapes = PRESETS["1080p"]
    """Input shapes the engine takes, and the one it is tuned for."""
    timeout_s: float = 600.0
    """The build is stopped after this many seconds."""
    workspace_mib: int | None = None
    """Limit of the scratch memory a kernel may use; None for the builder's default."""
    optimization_level: int | None = None
    """0 (fast build) to 5 (fast engine); None for the builder's default of 3."""
    timing_cache: Path | None = None
    """File with kernel timings, read and rewritten; speeds up later builds of `tensorrt`. In a folder, the file is
    named after version and GPU, because timings of another would choose wrong kernels."""
    tf32: bool = True
    """Whether float32 convolutions may round their operands to 11 significant bits; the graphs of exact models are
    built without, whatever it says."""
    compute_capabilities: tuple[str, ...] = ()
    """GPUs to build for, `SM86` or `8.6` or `current`; `tensorrt_rtx` only. Empty for its default: all it
    knows but Turing (SM75)."""
    version_compatible: bool = False
    """Let later versions of the same major version load the plan, at some cost in speed; `tensorrt` only."""
    hardware: str = "this"
    """GPUs that are to run the plan: `this`, `same-capability` or `ampere+` (slower); `tensorrt` only."""

    def __post_init__(self) -> None:
        if self.builder is not None:
            object.__setattr__(self, "builder", builder_name(self.builder))
        object.__setattr__(self, "compute_capabilities", tuple(map(_target, self.compute_capabilities)))
        if not self.timeout_s > 0:
            raise UsageError("no such time limit", why=f"{self.timeout_s} s", fix="give the build some seconds")
        if self.hardware not in HARDWARE_LEVELS:
            raise UsageError(f"no such hardware: {self.hardware}", fix=f"use one of {', '.join(HARDWARE_LEVELS)}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"--workspace {self.workspace_mib}", why="a kernel needs some memory")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"--optimization-level {self.optimization_level}", why="it is not between 0 and 5")
        if self.builder == TENSORRT and self.compute_capabilities:
            raise UsageError(
                "cannot choose a compute capability",
                why="tensorrt builds for the GPU of this machine only",
                fix="use tensorrt_rtx, or leave it out",
            )
        if self.builder == TENSORRT_RTX and (self.version_compatible or self.hardware != "this"):
            raise UsageError(
                "cannot choose what else runs this plan",
                why="plans of tensorrt_rtx run on every GPU it knows from Ampere on, and on their own version only",
                fix="leave --version-compatible and --hardware out, or use tensorrt",
            )


@dataclass(frozen=True)
class BuildRequest:
    """All that the process of a builder (`child`) needs to know to build one engine."""

    onnx: str
    plan: str
    """Where to write the plan; the parent renames it into place."""
    log: str
    options: BuildOptions
    """How to build it; `builder` is named, and holds only options that this builder has."""

    @property
    def builder(self) -> str:
        """`tensorrt` or `tensorrt_rtx`; also the name of its Python module."""
        assert self.options.builder is not None
        return self.options.builder

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> BuildRequest:
        """Inverse of `to_json`."""
        document = json.loads(text)
        options = document.pop("options")
        shapes = InputShapes(**{name: tuple(shape) for name, shape in options.pop("shapes").items()})
        cache = options.pop("timing_cache")
        return cls(**document, options=BuildOptions(shapes=shapes, timing_cache=cache and Path(cache), **options))


def _target(name: str) -> str:
    """`8.6`, `86`, `sm86` -> `SM86`."""
    plain = name.upper().replace(".", "")
    return f"SM{plain}" if plain.isdigit() else plain
