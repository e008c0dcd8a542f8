"""The page of `gpu_report.py`, from the results there are so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toolbox import markdown_table

_SLOWEST = 5
_HEAD = [
    "input", "computes in", "p50 ms", "p99 ms", "back to back ms", "images/s", "out Mpix/s", "GPU memory MiB", "clocks",
]  # fmt: skip


def machine(found: Mapping[str, Any]) -> list[str]:
    """Lines about the machine, from `doctor --json`."""
    if "failed" in found:
        return [f"- doctor: {found['failed']}"]
    gpus = [
        f"{gpu['name']} ({gpu['compute_capability']}, {gpu['memory_mib']} MiB; runs engines of "
        f"{' and '.join(gpu['runs_engines_of']) or 'neither TensorRT'})"
        for gpu in found["gpus"]
    ]
    versions = {name: version for name, version in found["packages"].items() if version}
    return [
        f"- GPU: {', '.join(gpus) or 'none'}; driver {found['driver'] or 'unknown'}",
        f"- CPU: {found['cpu']['name']}, {found['cpu']['physical_cores']} cores; {found['system']}",
        f"- {', '.join(f'{name} {version}' for name, version in versions.items())}",
        *(f"- warning: {warning}" for warning in found["warnings"]),
    ]


def distance(label: str, found: Mapping[str, Any]) -> str:
    """One line about how far results are from the reference, from `verify --json`."""
    if "failed" in found:
        return f"- {label}: {found['failed']}"
    floor = found["noise_floor"]["identical_pixels"]
    words = [
        f"- {label}: {found['identical_pixels']:.4%} identical values, largest step {found['max_lsb']} (noise floor "
        f"{floor:.4%}); PSNR-Y {found['runtime']['psnr_y_db']:.3f} dB, reference "
        f"{found['reference']['psnr_y_db']:.3f} dB"
    ]
    if found["layers"]:
        worst = max(found["layers"], key=lambda layer: layer["flip_rate"])
        words.append(f"of {len(found['layers'])} layers {worst['name']} flips most codes, {worst['flip_rate']:.2e}")
    return "; ".join([*words, "passed" if found["passed"] else f"NOT passed: {'; '.join(found['failures'])}"])


def latencies(measured: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[str]:
    """A table of latencies, and what limits them, from (size, what computes, `bench --json`)."""
    rows: list[list[str]] = []
    limits: dict[str, None] = {}
    for size, label, found in measured:
        rows.append(_row(size, label, found))
        limits.update(dict.fromkeys(found.get("limits", ())))
        slowest = [f"{each['name']} ({each['precision']}) {each['share']:.0%}" for each in found.get("layer_times", ())]
        if slowest:
            limits[f"{label}, at {size}: most time goes into {', '.join(slowest[:_SLOWEST])}"] = None
        if twin := found.get("baseline"):
            speed = f"int8 is {found['speedup']:.2f} times as fast"
            if queued := found.get("back_to_back_speedup"):
                speed += f" ({queued:.2f} back to back)"
            steady = found.get("steady", True) and twin.get("steady", True)
            rows.append(_row(size, f"{twin['model']}, {speed}{'' if steady else ', unsteady'}", twin))
        elif note := found.get("baseline_note", "").removesuffix("it was not asked for"):
            limits[f"{label}, at {size}: no float twin: {note}"] = None
    return [markdown_table(_HEAD, rows), *(f"- {limit}" for limit in limits)] if rows else []


def _row(size: str, label: str, found: Mapping[str, Any]) -> list[str]:
    if "failed" in found:
        return [size, label, found["failed"], *[""] * (len(_HEAD) - 3)]
    times = found.get("compute_ms") or found["latency_ms"]
    gpu = found.get("gpu") or {}
    clock = gpu.get("sm_clock_mhz")
    clocks = "" if clock is None else f"{clock[0]}-{clock[1]} MHz {' '.join(gpu['throttles'])}".strip()
    queued = found.get("back_to_back_ms")
    latency = [f"{times['p50']:.3g}", f"{times['p99']:.3g}", "" if queued is None else f"{queued:.3g}"]
    speed = [f"{found['images_per_s']:.4g}", f"{found['mpix_per_s']:.3g}"]
    return [size, label, *latency, *speed, str(gpu.get("memory_mib") or ""), clocks]


def training(found: Mapping[str, Any]) -> list[str]:
    """A table of training steps, from what `step_time.py --output` keeps."""
    if "failed" in found:
        return [f"- {found['failed']}"]
    rows: list[list[str]] = []
    for row in found["steps"]:
        # The recipe's name, and behind a comma what the variant sets.
        variant = row["recipe"].partition(",")[2] or "plain"
        if "steps_per_second" in row:
            speed = [f"{row['steps_per_second']:.3g}", f"{1 / row['ratio']:.2f}" if "ratio" in row else ""]
        else:
            speed = ["", ""]
        rows.append([variant, *speed, row.get("failed", "")])
    recipe = found["steps"][0]["recipe"].partition(",")[0] if found["steps"] else "no recipe"
    told = f"{recipe}; torch {found['torch']} on {found['device']}{'; ' + found['cut'] if 'cut' in found else ''}"
    return [f"{told}:", "", markdown_table(["variant", "steps/s", "times as fast as plain", "failed"], rows)]


def tests(found: Mapping[str, Any]) -> list[str]:
    """The end of what pytest said."""
    return [f"- {found['failed']}"] if "failed" in found else ["```", *found["tail"], "```"]


def section(title: str, lines: Sequence[str]) -> list[str]:
    """A section, or nothing where there is nothing to say."""
    return [f"## {title}", "", *lines, ""] if lines else []
