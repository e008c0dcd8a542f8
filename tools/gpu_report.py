"""All that is worth knowing about a GPU, in one command: `python tools/gpu_report.py --out DIR --minutes 15`.

Writes DIR/report.md: the machine, whether each TensorRT runs there, how far its results are from the reference, latency
in int8, fp16 and fp32 at several sizes, memory, clocks, what limits the speed, training steps a second, and the outcome
of `tests/gpu`; and DIR/report.tar.gz with the page and every result. Steps come in the order of their worth, each a
process of its own: one that fails is a line of the page and not its end, and the page is written again after each. What
was measured is kept in DIR: an interrupted report goes on where it stopped. Without a GPU, name a CPU runtime.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import click
import gpu_report_page as page
from gpu_report_part import Part
from gpu_report_steps import Budget, Result, Results, Step, last_line, not_reached, pack, run_steps, verb
from sample_networks import load_crops, random_network
from toolbox import COMMAND, ROOT, SAMPLES, read_json, run_python

from odm_deploy import quantize
from odm_deploy.checkpoint import save_model
from odm_deploy.errors import MissingError
from odm_deploy.files import write_text
from odm_deploy.machine.builders import BUILDERS
from odm_deploy.machine.gpus import find_gpus
from odm_deploy.networks.loading import load_network
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.runtimes.registry import runtime_class, why_unusable
from odm_deploy.terminal import run

SAMPLE = ROOT / "tools/demo/edsr_baseline_x4_w4a4.pt"
PUBLISHED, MODEL = "edsr_baseline_x4.pt", "w8a8.pt"
RECIPE = "training/recipes/paper60k/edsr_x4_odm_w4a4.toml"
VARIANTS = ("run.compile=true", "run.cuda_graphs=true", "run.compile=true,run.cuda_graphs=true")
SIZES = ("96x96", "480x270", "960x540")
SECONDS = 5.0


@click.command(context_settings=COMMAND)
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A model.pt; repeatable. [default: --weights at 8 bits, and the exact sample model]",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help=f"Trained float weights to quantize to 8 bits. [default: {PUBLISHED} in $ODM_WEIGHTS, else random ones]",
)
@click.option("--images", type=click.Path(path_type=Path), default=SAMPLES / "LR_bicubic/X4")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "runs/gpu_report", show_default=True)
@click.option("--runtime", "runtimes", multiple=True, help="[default: every TensorRT that works here]")
@click.option(
    "--size", "sizes", metavar="WxH", multiple=True, default=SIZES, show_default=True, help="Input sizes to time."
)
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="Be done in this time. [default: no limit]"
)
@click.option("--seconds", type=float, help="Time to spend on each measurement. [default: 5, or less with --minutes]")
@click.option("--training/--no-training", default=None, help="Time training steps. [default: where there is a GPU]")
@click.option("--tests/--no-tests", default=None, help="Run tests/gpu, too. [default: where there is a GPU]")
def main(
    models: Sequence[Path],
    weights: Path | None,
    images: Path,
    out: Path,
    runtimes: Sequence[str],
    sizes: Sequence[str],
    minutes: float | None,
    seconds: float | None,
    training: bool | None,
    tests: bool | None,
) -> None:
    """Measure, and write DIR/report.md."""
    budget = Budget(minutes)
    names = [runtime_class(name).name for name in list(runtimes) or _usable_builders()]
    out.mkdir(parents=True, exist_ok=True)
    if seconds is None:
        seconds = SECONDS if minutes is None else max(1.0, min(SECONDS, 60 * minutes / (8 * len(sizes) * len(names))))
    steps, measured, needs = [Step("doctor", "the machine", verb("doctor"))], list(models), ()
    if not models:
        steps.append(Step("model", "a model of 8 bits", partial(eight_bits, out, weights)))
        measured, needs = [out / MODEL, SAMPLE], ("model",)
    parts = [Part(name, model, images, out, sizes, seconds) for model, name in product(measured, names)]
    main_parts, others = parts[: len(names)], parts[len(names) :]
    for part in main_parts:
        steps += part.chain(part.rests[0], needs)
    here = bool(find_gpus())
    if here if training is None else training:
        steps.append(Step("training", "training steps", partial(time_training, out), weight=4))
    if here if tests is None else tests:
        steps.append(Step("tests", "tests/gpu", run_gpu_tests, weight=4))
    for part in main_parts:
        steps += [step for rest in part.rests[1:] for step in part.chain(rest, needs)] + part.extras()
    for part in others:
        steps += [step for rest in part.rests for step in part.chain(rest)] + part.extras()

    def write_page(results: Results) -> None:
        write_text(out / "report.md", _page(parts, steps, results))

    try:
        run_steps(steps, out, budget, write_page)
    finally:
        # An interrupted report has one, too.
        pack(out)
    click.echo(f"wrote {out / 'report.md'}")


def _usable_builders() -> list[str]:
    problems = {name: why_unusable(name) for name in BUILDERS}
    usable = [name for name, problem in problems.items() if not problem]
    if not usable:
        why = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        raise MissingError("no engine can run here", why=why, fix="name a runtime of the CPU with --runtime openvino")
    return usable


def _page(parts: Sequence[Part], steps: Sequence[Step], results: Results) -> str:
    machine = page.machine(results.get("doctor", {"failed": "not reached"}))
    lines = ["# Engines on this machine", "", *page.section("Machine", machine)]
    made = results.get("model", {})
    if made:
        lines += page.section("Model", [f"- {made.get('failed') or made['from']}"])
    for part in parts:
        lines += part.section(results)
    if "training" in results:
        lines += page.section("Training", page.training(results["training"]))
    if "tests" in results:
        lines += page.section("tests/gpu", page.tests(results["tests"]))
    lines += page.section("Not reached", [f"- {what}" for what in not_reached(steps, results)])
    return "\n".join(lines)


def eight_bits(out: Path, weights: Path | None, _: float = 0.0) -> Result:
    """Make out/w8a8.pt: all layers but the head at 8 bits with ordinary scales, which may rest in float16.

    From trained weights where there are some. Without, from seeded random ones: neither speed nor how runtimes round
    depends on training, but a PSNR then means nothing.
    """
    found = weights or Path(os.environ.get("ODM_WEIGHTS", "nowhere")) / PUBLISHED
    wide, trained = LayerBits(8, 8), weights is not None or found.is_file()
    policy = QuantizationPolicy(body=wide, body_end=wide, tail=wide)
    crops = load_crops(4)
    network = load_network(found) if trained else random_network("edsr", crops)
    save_model(quantize(network, policy, crops), out / MODEL)
    origin = f"trained weights {found.name}" if trained else "random weights: PSNR says nothing (give --weights)"
    return {"from": f"{MODEL}: {network.name} x{network.scale}, {origin}"}


def time_training(out: Path, seconds: float) -> Result:
    """Steps a second of the plain, the compiled and the recorded training step, on the repository's own images."""
    kept, device = out / "training-steps.json", "cuda" if find_gpus() else "cpu"
    settings = [
        "bits=w2a2", f'data.folders=["{SAMPLES / "HR"}"]', "data.validation_folders=[]", "data.validation_images=0",
        'network.weights=""', f"run.device={device}",
    ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    words += [word for variant in VARIANTS for word in ("--variant", variant)]
    kept.unlink(missing_ok=True)
    rounds = ("--rounds", "8", "--round", "20") if device == "cuda" else ("--rounds", "1", "--round", "1")
    try:
        code, _, errors = run_python("tools/step_time.py", RECIPE, *words, *rounds, "--output", kept, timeout_s=seconds)
    except subprocess.TimeoutExpired:
        if not kept.exists():
            raise
        return {**read_json(kept), "cut": f"cut off after {seconds:.0f} s"}
    return read_json(kept) if kept.exists() else {"failed": f"exit code {code}: {last_line(errors)}"}


def run_gpu_tests(seconds: float) -> Result:
    """What pytest says about tests/gpu."""
    # As `make test-gpu`: a crash costs one test.
    isolated = importlib.util.find_spec("xdist") is not None
    workers = ("-n", "4", "--dist", "load", "--max-worker-restart", "99") if isolated else ()
    code, output, _ = run_python("pytest", "-q", "-rs", *workers, "tests/gpu", timeout_s=seconds)
    return {"returncode": code, "tail": output.strip().splitlines()[-25:]}


if __name__ == "__main__":
    run(main, "gpu_report")
