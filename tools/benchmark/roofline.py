"""What this machine can do at most: products a second by type, and bytes a second, measured.

A convolution that computes M products on int8 cannot be faster than M over the int8 peak. How far each is from that is
what tells whether a model is slow, or the machine.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

SIZES = (512, 1024, 2048)
"""Square matrices: the best of these counts."""
LONGEST_S = 1.0
"""Of a product: larger ones are left out where torch has no fast kernels for this CPU."""
RUNS = 7
COPY_MIB = 256


def machine_peaks() -> dict[str, float | None]:
    """Peaks in 10^9 multiply-adds a second (`fp32`, `bf16`, `int8`; None: torch has none here), and `copy_gb_s`.

    Products of square matrices by oneDNN, the library that OpenVINO and torch compute with, on one thread a core; a
    copy counts reading and writing.
    """
    import torch

    from odm_deploy.machine.host import physical_cpus

    torch.set_num_threads(physical_cpus())
    kinds: dict[str, Callable[[int], tuple[Any, Callable[[Any, Any], Any]]]] = {
        "fp32": lambda n: (torch.rand(n, n), torch.mm),
        "bf16": lambda n: (torch.rand(n, n).bfloat16(), torch.mm),
        "int8": lambda n: (torch.randint(-127, 128, (n, n), dtype=torch.int8), torch._int_mm),  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    }
    peaks: dict[str, float | None] = {}
    for kind, make in kinds.items():
        try:
            peaks[kind] = _peak(make)
        except RuntimeError:
            peaks[kind] = None
    source = np.ones(COPY_MIB * 2**20 // 8)
    target = np.empty_like(source)
    peaks["copy_gb_s"] = 2 * source.nbytes / _fastest(lambda: np.copyto(target, source)) / 1e9
    return peaks


def _peak(make: Callable[[int], tuple[Any, Callable[[Any, Any], Any]]]) -> float:
    found: list[float] = []
    seconds = 0.0
    for before, n in itertools.pairwise((SIZES[0], *SIZES)):
        if seconds * (n / before) ** 3 > LONGEST_S:
            break
        matrix, product = make(n)
        seconds = _fastest(functools.partial(product, matrix, matrix))
        found.append(n**3 / seconds / 1e9)
    return max(found)


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest run, the first one not counted."""
    run()
    times: list[float] = []
    for _ in range(RUNS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def highest(peaks: Mapping[str, float | None], known: Mapping[str, float | None]) -> dict[str, float | None]:
    """Of peaks measured at two times the higher ones: whatever else ran, the machine has done that."""
    found = {kind: [value for value in (peaks.get(kind), known.get(kind)) if value is not None] for kind in peaks}
    return {kind: max(values, default=None) for kind, values in found.items()}
