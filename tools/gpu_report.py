"""All that is worth knowing about engines on this GPU, in one command: `python tools/gpu_report.py --out DIR`.

Writes DIR/report.md: the machine, whether each TensorRT runs there, how far its results are from the
reference, latency in int8, fp16 and fp32 at several sizes, memory, clocks, what limits the speed, and the outcome of
`tests/gpu`. Every step is a process of its own, so that one that fails is a line of the report and not its end, and its
result is kept in DIR: an interrupted report goes on where it stopped. On a machine without a GPU, name a CPU runtime.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click
from sample_networks import load_crops, random_network
from toolbox import COMMAND, ROOT, SAMPLES, kept, markdown_table, run_python

from odm_deploy import quantize
from odm_deploy.building.build import build_engine
from odm_deploy.building.options import BuildOptions
from odm_deploy.bundle import Bundle
from odm_deploy.checkpoint import save_model
from odm_deploy.errors import MissingError, OdmError
from odm_deploy.files import write_text
from odm_deploy.graphs.input_shapes import parse_shapes
from odm_deploy.lowering.float_twin import float_twin
from odm_deploy.machine.builders import BUILDERS
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.runtimes.registry import runtime_class, why_unusable
from odm_deploy.terminal import run

SAMPLE = ROOT / "tools/demo/edsr_baseline_x4_w4a4.pt"
STEP_LIMIT_S = 900
SLOWEST = 5
SIZES = ("96x96", "480x270", "960x540")


@click.command(context_settings=COMMAND)
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A model.pt; repeatable. [default: the exact sample model, and an ordinary one of the same network]",
)
@click.option("--images", type=click.Path(path_type=Path), default=SAMPLES / "LR_bicubic/X4")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "runs/gpu_report", show_default=True)
@click.option("--runtime", "runtimes", multiple=True, help="[default: every TensorRT that works here]")
@click.option(
    "--size", "sizes", metavar="WxH", multiple=True, default=SIZES, show_default=True, help="Input sizes to time."
)
@click.option("--seconds", default=5.0, show_default=True, help="Time to spend on each measurement.")
@click.option("--tests/--no-tests", default=True, help="Run tests/gpu, too.")
def main(
    models: Sequence[Path],
    images: Path,
    out: Path,
    runtimes: Sequence[str],
    sizes: Sequence[str],
    seconds: float,
    tests: bool,
) -> None:
    """Measure, and write DIR/report.md."""
    chosen = list(runtimes) or _usable_builders()
    out.mkdir(parents=True, exist_ok=True)
    names = [runtime_class(name).name for name in chosen]
    sections = [_environment(out)]
    measured = models or (SAMPLE, ordinary_model(out / "ordinary_w8a8.pt"))
    for name, model in product(names, measured):
        folder = out / f"{name}-{model.stem}"
        folder.mkdir(exist_ok=True)
        sections.append(_runtime_section(name, model, images, folder, sizes, seconds))
    if tests:
        sections.append(_tests(out))
    write_text(out / "report.md", "\n".join(["# Engines on this machine", "", *sections]))
    click.echo(f"wrote {out / 'report.md'}")


def _usable_builders() -> list[str]:
    problems = {name: why_unusable(name) for name in BUILDERS}
    usable = [name for name, problem in problems.items() if not problem]
    if not usable:
        why = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        raise MissingError("no engine can run here", why=why, fix="name a runtime of the CPU with --runtime openvino")
    return usable


def ordinary_model(path: Path) -> Path:
    """EDSR-baseline x4 with ordinary scales, all but its head at 8 bits: unlike exact models it may rest in float16.

    Its weights are random. Neither speed nor how runtimes round depends on training; its PSNR means nothing.
    """
    if not path.exists():
        crops, wide = load_crops(2), LayerBits(8, 8)
        policy = QuantizationPolicy(body=wide, body_end=wide, tail=wide)
        save_model(quantize(random_network("edsr", crops), policy, crops), path)
    return path


def _step(path: Path, arguments: Sequence[Any]) -> dict[str, Any]:
    """The JSON a verb of odm-deploy prints, kept at `path`; {"failed": its error line} where it fails."""

    def measure() -> dict[str, Any]:
        try:
            code, output, errors = run_python("odm_deploy", *arguments, "--json", timeout_s=STEP_LIMIT_S)
        except subprocess.TimeoutExpired:
            return {"failed": f"took longer than {STEP_LIMIT_S} s"}
        # 3: a gate was not met, which is a result.
        if code in (0, 3) and output.strip():
            return json.loads(output)
        last = (errors.strip().splitlines() or ["it printed nothing"])[-1]
        return {"failed": f"exit code {code}: {last}"}

    return kept(path, measure)


def _environment(out: Path) -> str:
    found = _step(out / "doctor.json", ["doctor"])
    gpus = [f"{gpu['name']} ({gpu['compute_capability']}, {gpu['memory_mib']} MiB)" for gpu in found["gpus"]]
    versions = {name: version for name, version in found["packages"].items() if version}
    lines = [
        f"- GPU: {', '.join(gpus) or 'none'}; driver {found['driver'] or 'unknown'}",
        f"- CPU: {found['cpu']['name']}, {found['cpu']['physical_cores']} cores; {found['system']}",
        f"- {', '.join(f'{name} {version}' for name, version in versions.items())}",
        *(f"- warning: {warning}" for warning in found["warnings"]),
    ]
    return "\n".join(["## Machine", "", *lines, ""])


def _runtime_section(name: str, model: Path, images: Path, out: Path, sizes: Sequence[str], seconds: float) -> str:
    lines = [f"## {name}: {model.stem}", ""]
    engine = ["--builder", name] if name in BUILDERS else ["--no-engine"]
    widths, heights = zip(*(map(int, size.split("x")) for size in sizes), strict=True)
    best = max(sizes, key=lambda size: int(size.split("x")[1]))
    shapes = f"1x3x16x16:{_shape(best)}:1x3x{max(*heights, 96)}x{max(*widths, 96)}"
    bundles: dict[str, Path] = {}
    # The CPU runtimes of this project take a float32 rest; engines are timed with the rest in half precision, too.
    for rest in ("fp32", "fp16") if name in BUILDERS else ("fp32",):
        if rest == "fp16" and bundles and Bundle.open(bundles["fp32"]).require_manifest().exact is not None:
            lines.append("- rest fp16: not of an exact model, whose sums need float32's 24 bits")
            continue
        bundle = out / rest
        arguments = ["export", model, "-o", bundle, "--precision", rest, "--shapes", shapes, *engine]
        exported = _step(out / f"{rest}-export.json", arguments)
        if "failed" in exported:
            lines.append(f"- int8, rest {rest}: export failed: {exported['failed']}")
            continue
        bundles[rest] = bundle
        lines += _agreement(name, rest, bundle, model, images, out)
    table: list[list[str]] = []
    limits: dict[str, None] = {}
    for size in sizes:
        table += _latency(name, bundles, size, seconds, out, limits)
    head = ["input", "computes in", "p50 ms", "p99 ms", "images/s", "out Mpix/s", "GPU memory MiB", "clocks"]
    lines += ["", markdown_table(head, table)]
    lines += [f"- {limit}" for limit in limits]
    return "\n".join([*lines, ""])


def _agreement(name: str, rest: str, bundle: Path, model: Path, images: Path, out: Path) -> list[str]:
    """The same image bytes through the reference, the runtime, and beside an engine through ONNX Runtime, too."""
    common = ["verify", bundle, "--against", model, "--images", images]
    lines: list[str] = []
    for runtime in (name, "onnxruntime") if name in BUILDERS else (name,):
        # Layer by layer, too, where nobody has looked before; on CPU runtimes the tests do.
        extra = [] if runtime in BUILDERS else ["--no-layers"]
        found = _step(out / f"{rest}-verify-{runtime}.json", [*common, "--runtime", runtime, *extra])
        lines.append(_distance(f"- int8, rest {rest}, {runtime} against the reference:", found))
    return lines


def _distance(label: str, found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"{label} {found['failed']}"
    floor = found["noise_floor"]["identical_pixels"]
    words = [
        f"{label} {found['identical_pixels']:.4%} identical values, largest step {found['max_lsb']} (noise floor "
        f"{floor:.4%}); PSNR-Y {found['runtime']['psnr_y_db']:.3f} dB, reference "
        f"{found['reference']['psnr_y_db']:.3f} dB"
    ]
    if found["layers"]:
        worst = max(found["layers"], key=lambda layer: layer["flip_rate"])
        words.append(f"of {len(found['layers'])} layers {worst['name']} flips most codes, {worst['flip_rate']:.2e}")
    return "; ".join([*words, "passed" if found["passed"] else f"NOT passed: {'; '.join(found['failures'])}"])


def _shape(size: str) -> str:
    """`WxH` as a shape of one image."""
    width, height = size.split("x")
    return f"1x3x{height}x{width}"


def _latency(
    name: str, bundles: dict[str, Path], size: str, seconds: float, out: Path, limits: dict[str, None]
) -> list[list[str]]:
    """Table rows at one size: int8 with each rest, the half-precision twin timed beside it, and float32."""
    rows: list[list[str]] = []
    common = ["--runtime", name, "--size", size, "--seconds", seconds]
    for rest, bundle in bundles.items():
        found = _step(out / f"{rest}-{size}-bench.json", ["bench", bundle, *common])
        rows.append(_row(size, f"int8, rest {rest}", found))
        limits.update(dict.fromkeys(found.get("limits", ())))
        slowest = [f"{each['name']} ({each['precision']}) {each['share']:.0%}" for each in found.get("layer_times", ())]
        if slowest:
            limits[f"int8, rest {rest}, at {size}: most time goes into {', '.join(slowest[:SLOWEST])}"] = None
        twin = found.get("baseline")
        if twin is not None and rest == list(bundles)[-1]:
            rows.append(_row(size, f"{twin['model']}, int8 is {found['speedup']:.2f} times as fast", twin))
    if name in BUILDERS and "fp32" in bundles:
        plan = out / f"float32-{size}.onnx"
        if not plan.exists():
            plan.write_bytes(float_twin(Bundle.open(bundles["fp32"]).graph).SerializeToString())
        rows.append(_row(size, "fp32", _float32(name, plan, size, common, out)))
    return rows


def _float32(name: str, onnx_path: Path, size: str, common: Sequence[Any], out: Path) -> dict[str, Any]:
    plan = onnx_path.with_suffix(".plan")
    try:
        if not plan.exists():
            build_engine(onnx_path, plan, BuildOptions(builder=name, shapes=parse_shapes(_shape(size)), tf32=False))
    except OdmError as error:
        return {"failed": str(error)}
    return _step(out / f"float32-{size}-bench.json", ["bench", plan, *common, "--no-baseline"])


def _row(size: str, label: str, found: dict[str, Any]) -> list[str]:
    if "failed" in found:
        return [size, label, found["failed"], *[""] * 5]
    times = found.get("compute_ms") or found["latency_ms"]
    gpu = found.get("gpu") or {}
    clock = gpu.get("sm_clock_mhz")
    clocks = "" if clock is None else f"{clock[0]}-{clock[1]} MHz {' '.join(gpu['throttles'])}".strip()
    latency = [f"{times['p50']:.3g}", f"{times['p99']:.3g}"]
    speed = [f"{found['images_per_s']:.4g}", f"{found['mpix_per_s']:.3g}"]
    return [size, label, *latency, *speed, str(gpu.get("memory_mib") or ""), clocks]


def _tests(out: Path) -> str:
    def measure() -> dict[str, Any]:
        # As `make test-gpu`: a crash costs one test.
        workers = ("-n", "4", "--dist", "load", "--max-worker-restart", "99")
        code, output, _ = run_python("pytest", "-q", "-rs", *workers, "tests/gpu", timeout_s=1800)
        return {"returncode": code, "tail": output.strip().splitlines()[-25:]}

    found = kept(out / "tests.json", measure)
    return "\n".join(["## tests/gpu", "", "```", *found["tail"], "```", ""])


if __name__ == "__main__":
    run(main, "gpu_report")
