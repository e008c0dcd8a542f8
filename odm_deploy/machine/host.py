"""The processor, with the instructions that decide how fast int8 and bf16 run, and the memory of this machine."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_ASSUMED_MEMORY_BYTES = 8 << 30

# cpuinfo flag -> what the field calls it, in the order of what they bring to quantized inference.
_FEATURES = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "asimddp": "NEON dot product",
    "i8mm": "NEON i8mm",
}


@cache
def cpu_name() -> str:
    """The processor's marketing name, or the architecture where the system does not tell."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


@cache
def cpu_features() -> tuple[str, ...]:
    """The vector instruction sets that matter to quantized inference; empty where the system does not list them."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return tuple(name for flag, name in _FEATURES.items() if flag in flags)


def adds_in_16_bits() -> bool | None:
    """Whether this CPU adds pairs of 8-bit products in 16 bits: an x86 one without VNNI. None where nothing tells."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return not {"AVX512-VNNI", "AVX-VNNI"} & set(cpu_features()) if _cpuinfo("flags") else None


@cache
def physical_cpus() -> int:
    """How many physical cores this process may use, at least 1.

    Integer kernels keep a core's vector units busy with one thread; a second hardware thread only adds contention.
    """
    if not hasattr(os, "sched_getaffinity"):
        return max(1, (os.cpu_count() or 1))
    return max(1, len({_core_of(cpu) for cpu in os.sched_getaffinity(0)}))


def describe_cpu(threads: int) -> str:
    """A device line for reports, such as "AMD EPYC 9354, 2 threads"."""
    return f"{cpu_name()}, {threads} thread{'' if threads == 1 else 's'}"


def memory_bytes() -> int:
    """All memory, in use or not; 8 GiB on systems that do not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return _ASSUMED_MEMORY_BYTES


def _core_of(cpu: int) -> str:
    """A string that hardware threads of one core share; the CPU's own number where the system does not tell."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return str(cpu)


def _cpuinfo(key: str) -> str:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    facts = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in facts if name.strip() == key), "")
