"""Which vector instructions models may use here: the CPU's, up to the limit that the environment sets to oneDNN."""

from __future__ import annotations

import os

from odm_deploy.machine.host import cpu_features

LIMIT = "ONEDNN_MAX_CPU_ISA"
"""OpenVINO and torch keep to it."""
_BELOW_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}


def instructions() -> list[str]:
    """Those of the CPU that matter, and the limit where one is set."""
    limit = os.environ.get(LIMIT)
    return [*cpu_features(), *([f"{LIMIT}={limit}"] if limit else [])]


def has_bf16() -> bool:
    """Whether products of bf16 are computed as such."""
    limit = os.environ.get(LIMIT, "").upper()
    return limit not in _BELOW_BF16 and not {"AVX512-BF16", "AMX-BF16"}.isdisjoint(cpu_features())
