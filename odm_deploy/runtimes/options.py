"""How a model is to be run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from odm_deploy.errors import UsageError


@dataclass(frozen=True)
class RuntimeOptions:
    """How a model is to be run. None means the runtime's own default; each runtime refuses what it cannot honour."""

    threads: int | None = None
    """CPU threads; None takes one a physical core this process may use."""
    optimize: bool = True
    """False runs the graph node by node as written (ONNX Runtime only): the unfused reference of its own fusions."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the layers that are not int8 (bf16: OpenVINO only, on CPUs with bf16 instructions)."""
    cuda_graph: bool = True
    """Replay a captured CUDA graph per shape instead of launching kernel by kernel (TensorRT only)."""
    kernel_cache: Path | None = None
    """File that kernels compiled for this GPU are kept in from one process to the next, such as `engine.cache` beside
    the plan (TensorRT for RTX only: others compile nothing when they run). None compiles them anew."""
    contexts: int = 1
    """How many runs may be under way at once, each with memory of its own (`Engine`, `Runtime.another`)."""

    def __post_init__(self) -> None:
        if self.contexts < 1:
            raise UsageError(f"{self.contexts} contexts", why="a runtime needs at least one")
        if self.precision not in ("fp32", "bf16"):
            raise UsageError(f"--precision {self.precision}", fix="use fp32 or bf16")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads}", why="a runtime needs at least one thread")
