"""`odm-deploy quantize WEIGHTS --images DIR`: float weights and images in, `model.pt` out, and an engine if asked for.

Heavy imports wait until the command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odm_deploy.cli.calibration_inputs import check_smallest, image_options, inputs_of, load_float, require_weights
from odm_deploy.cli.imports import slow_imports
from odm_deploy.cli.options import keep_input, say_what_is_not_read, weights_options
from odm_deploy.cli.quantize_options import policy_options, range_options, to_policies, to_settings
from odm_deploy.cli.quantize_tuning import cost_documents, say_cost, to_budget, to_goal, tuning_options
from odm_deploy.errors import UsageError
from odm_deploy.progress import counted, steps
from odm_deploy.terminal import emit_json, json_option, progress, progress_alone, say
from odm_deploy.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from odm_deploy.accounting import FloatShare
    from odm_deploy.graphs.input_shapes import InputShapes
    from odm_deploy.networks.base import SuperResolutionNetwork
    from odm_deploy.quantization.calibration_images import CalibrationImages
    from odm_deploy.quantization.model import QuantizedModel
    from odm_deploy.quantization.policy import QuantizationPolicy
    from odm_deploy.quantization.post_training import LayerSummary
    from odm_deploy.tuning.held_back import Sample
    from odm_deploy.tuning.profile_choice import ProfileChoice
    from odm_deploy.tuning.tune import Tuned

_PATH = click.Path(path_type=Path)
_NAMED = 8
"""Float layers that the summary names; JSON has all."""


@click.command("quantize", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("weights", type=_PATH)
@image_options("Images to calibrate on.", 32)
@click.option("-o", "output", type=_PATH, help="Result; a model that is there is replaced.  [default: a new model.pt]")
@weights_options
@policy_options
@range_options
@tuning_options
@click.option(
    "--export",
    "bundle",
    type=_PATH,
    metavar="BUNDLE",
    help="Go on to a bundle, as odm-deploy export does; one that is there is replaced.",
)
@click.option("--engine/--no-engine", default=True, help="With --export: build an engine, where a builder is here.")
@click.option("--shapes", default="1080p", show_default=True, help="With --export: input sizes of the engine.")
@json_option
def command(
    weights: Path,
    image_source: str,
    output: Path | None,
    network: str | None,
    scale: int | None,
    settings: dict[str, Any],
    max_images: int,
    low_resolution: bool,
    crop_px: int | None,
    bundle: Path | None,
    engine: bool,
    shapes: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Quantize float WEIGHTS after training: watch the network on images, choose ranges, write model.pt.

    WEIGHTS is a .pth, .pt, .ckpt or .safetensors file. Its architecture and scale are told from the weights: this
    project's networks, and all that spandrel knows. A float .onnx file says itself what to compute. About 30 images
    like those to be upscaled are enough.
    """
    from odm_deploy.files import file_sha256
    from odm_deploy.graphs.input_shapes import parse_shapes
    from odm_deploy.imaging.reading import choose_images

    started = time.monotonic()
    # Everything that can be wrong about the call is found before the minutes of work, and most before PyTorch is here.
    output = _place_of(output)
    keep_input(weights, output)
    _check_export(bundle, shapes, weights, output)
    require_weights(weights)
    paths = choose_images(image_source, max_images)
    with slow_imports():
        from odm_deploy.checkpoint import is_model, save_model
        from odm_deploy.quantization.calibration_images import hold_back
        from odm_deploy.quantization.post_training import Known, calibrate
        from odm_deploy.tuning.drawings import compare_drawings
        from odm_deploy.tuning.effort import JUDGED_MACS, affordable_px
        from odm_deploy.tuning.goals import default_goal
        from odm_deploy.tuning.held_back import PART_PX, HeldBack
        from odm_deploy.tuning.profile_choice import choose_profile
        from odm_deploy.tuning.tune import tune
        from odm_deploy.tuning.unfinished import Unfinished
    if output.exists() and not is_model(output):
        why = "a file is there that is no model.pt, and would be lost"
        raise UsageError(f"cannot write {output}", why=why, fix="name another file with -o, or remove it first")
    policies, ranges = to_policies(options), to_settings(options)
    goal, budget = to_goal(options), to_budget(options)
    say_what_is_not_read(image_source)
    with progress("loading") as track:
        loaded = load_float(weights, network, scale, settings, paths, track)
        seen_paths, unseen_paths = hold_back(paths)
        refined = all(policy.power_of_two for policy in policies.values())
        with steps(track, (1, 1, 3), "trying sizes of images") as begin:
            begin()
            divisor = _check_sizes(loaded, exporting=bundle is not None)
            begin()
            seen = inputs_of(loaded, seen_paths, low_resolution, crop_px, refined=refined)
            check_smallest(loaded, dataclasses.replace(seen, paths=paths))
            _say_small_inputs(seen)
            unseen = dataclasses.replace(seen, paths=unseen_paths)
            begin()
            whole = _depends_on_size(loaded, seen)
    _say_slow_here(next(iter(policies.values())))
    ranges = dataclasses.replace(ranges, whole_inputs=whole)
    if goal is not None:
        goal.check(with_truth=seen.downscale > 1)
    metadata = {
        "method": f"post-training, {ranges.method.value}",
        "bits": options["bits"],
        "weights_file": weights.name,
        "weights_sha256": file_sha256(weights),
        "images": len(seen),
        "odm_deploy": __version__,
    }
    unfinished = None
    if budget is not None:
        judged_by = (goal, options["most_float_percent"], unseen_paths)
        hashes = [file_sha256(path) for path in paths]
        depends_on = (policies, ranges, loaded.config, seen, hashes, budget, judged_by)
        unfinished = Unfinished(output, {**metadata, "depends_on": repr(depends_on)})
        # Refuses what is of another call.
        unfinished.load()

    known: Known = {}
    with progress("calibrating") as track:

        def calibrated(
            profile: str, widths: QuantizationPolicy, in_sequence: bool = True
        ) -> tuple[QuantizedModel, list[LayerSummary]]:
            how = dataclasses.replace(ranges, in_sequence=in_sequence)
            described = {**metadata, "profile": profile}
            return calibrate(loaded, seen, widths, how, described, track, known)

        part_px = seen.crop_px if whole else affordable_px(loaded, len(unseen), JUDGED_MACS, PART_PX)
        held_back = HeldBack(loaded, _samples(unseen), part_px, track)
        choice = choose_profile(policies, lambda name: calibrated(name, policies[name]), held_back, goal)
        if choice.why:
            say(f"profile {choice.profile} is taken, since {choice.why}")

        def tuned_as(choice: ProfileChoice) -> Tuned:
            percent = options["most_float_percent"]
            share = None if percent is None else percent / 100

            def again(widths: QuantizationPolicy, in_sequence: bool) -> tuple[QuantizedModel, Sequence[LayerSummary]]:
                known = in_sequence and widths == choice.policy
                return choice.calibrated if known else calibrated(choice.profile, widths, in_sequence)

            return tune(
                loaded,
                choice.policy,
                again,
                held_back,
                goal=goal or default_goal(choice.policy, share, with_truth=seen.downscale > 1),
                budget=budget,
                images=seen,
                unfinished=unfinished,
                track=track,
                say=say,
            )

        tuned = tuned_as(choice)
        # What was fine-tuned is compared with nothing that was not.
        if budget is None and (faster := choice.faster_and_as_good(tuned.cost)):
            say(f"profile {faster.profile} is taken after all, since {faster.why}")
            choice, tuned = faster, tuned_as(faster)
        if len(unseen) == 1 and seen.paths != unseen.paths:
            # One image says nothing of how they differ. Those that were seen do: what is lost on them is lost.
            part_px = seen.crop_px if whole else affordable_px(loaded, len(seen), JUDGED_MACS, PART_PX)
            others = HeldBack(loaded, _samples(seen), part_px, track).measure(tuned.model)
            tuned = dataclasses.replace(tuned, cost=tuned.cost.beside(others))
    model, summaries = tuned.model, tuned.summaries
    save_model(model, output)
    if unfinished is not None:
        unfinished.remove()
    seconds = round(time.monotonic() - started, 1)
    layers, images = counted(len(summaries), "layer"), counted(len(seen), "image")
    summary = f"{layers} quantized, {ranges.method.value} ranges from {images}"
    say(f"{output}: {loaded.title} x{loaded.scale}, {summary}, {seconds} s")
    shares = _say_what_stays_float(model)
    _say_which_sums_stay_float(loaded, model)
    height, width = held_back.lows[0].shape[2:]
    drawings = compare_drawings(loaded, model, height, width, say)
    say_cost(tuned, drawings, output, held_back=seen.paths != unseen.paths)
    if bundle is not None:
        _export(model, output, bundle, parse_shapes(shapes).enlarged(divisor) if engine else None)
    if as_json:
        emit_json(
            {
                "model": str(output),
                "network": network or loaded.name,
                "config": dataclasses.asdict(loaded.config),
                "scale": loaded.scale,
                "bits": options["bits"],
                "profile": choice.profile,
                "method": ranges.method.value,
                "images": len(seen),
                "exact_sums": model.metadata["exact_sums"],
                "layers": [dataclasses.asdict(summary) for summary in summaries],
                "float_layers": [dataclasses.asdict(share) for share in shares],
                **cost_documents(tuned, drawings),
                "bundle": None if bundle is None else str(bundle),
                "seconds": seconds,
            }
        )


def _samples(images: CalibrationImages) -> Iterator[Sample]:
    """What to judge by, called by the names of the files."""
    from odm_deploy.tuning.held_back import Sample

    return (Sample(*pair, path.name) for pair, path in zip(images.pairs(), images.paths, strict=True))


def _place_of(output: Path | None) -> Path:
    """Where the result can go: what was named, or a new model.pt; hours of training may be in one that is there."""
    from odm_deploy.files import check_file

    if output is None and (output := Path("model.pt")).exists():
        raise UsageError(f"{output} is there already", fix="name the result: -o other.pt, or -o model.pt to replace it")
    if output.is_dir():
        raise UsageError(f"cannot write {output}", why="it is a folder", fix=f"name a file: -o {output / 'model.pt'}")
    check_file(output)
    return output


def _say_what_stays_float(model: QuantizedModel) -> list[FloatShare]:
    """The layers whose products stay float, largest share first, and a line that names them."""
    from odm_deploy.accounting import float_shares
    from odm_deploy.errors import InputError

    try:
        shares = float_shares(model)
    except InputError as error:
        say(f"not counted how much stays float: {error}")
        return []
    total = sum(share.macs_share for share in shares)
    named = [f"{share.name} {share.macs_share:.1%}" for share in shares[:_NAMED]]
    if rest := shares[_NAMED:]:
        named.append(f"{len(rest)} more {sum(share.macs_share for share in rest):.1%}")
    say(f"{1 - total:.1%} of the multiply-accumulates quantized" + (f"; float: {', '.join(named)}" if named else ""))
    return shares


def _say_which_sums_stay_float(network: SuperResolutionNetwork, model: QuantizedModel) -> None:
    """Of a model with signals the sums that are none, in a line."""
    if not model.signals:
        return
    from odm_deploy.quantization.signal_plan import plan_signals

    plan = plan_signals(network, model.layers.keys(), operations=model.exact is None)
    if plan.left:
        named = ", ".join([*plan.left[:_NAMED], *([f"{len(plan.left) - _NAMED} more"] if plan.left[_NAMED:] else [])])
        verb = "stays" if len(plan.left) == 1 else "stay"
        say(f"{len(plan.left)} of {counted(plan.sums, 'sum')} between layers {verb} float: {named}")


def _check_export(bundle: Path | None, shapes: str, weights: Path, output: Path) -> None:
    """Refuse a bundle that could not be written in the end, or would take something else with it."""
    if bundle is None:
        return
    from odm_deploy.files import check_directory
    from odm_deploy.graphs.input_shapes import parse_shapes

    parse_shapes(shapes)
    if weights.resolve().is_relative_to(bundle.resolve()):
        why = f"it is replaced as a whole, and {weights}, the input, lies in it"
        raise UsageError(f"cannot write {bundle}", why=why, fix="name another folder")
    if output.resolve().is_relative_to(bundle.resolve()):
        fix = f"name the model outside of it: -o {output.name if output != bundle else 'model.pt'}"
        raise UsageError(f"-o {output} lies in --export {bundle}", why="a bundle is replaced as a whole", fix=fix)
    check_directory(bundle)


def _check_sizes(network: SuperResolutionNetwork, *, exporting: bool) -> int:
    """What the sides of images have to be multiples of; says so where that is not 1.

    Refuses to calibrate for a bundle that could not be made; says so where none is asked for yet.
    """
    from odm_deploy.errors import OdmError
    from odm_deploy.networks.running import check_exportable, multiples_taken

    if not network.is_foreign:
        return 1
    try:
        check_exportable(network)
    except OdmError as error:
        if exporting:
            raise
        say(f"no bundle can be made of it later: {error}")
        return 1
    if (divisor := multiples_taken(network)) > 1:
        say(
            f"it takes images whose sides are multiples of {divisor}, and so will its bundle: bring others to such a "
            "size, or pad in its code"
        )
    return divisor


def _say_small_inputs(images: CalibrationImages) -> None:
    """That images are too small to be shrunk, in a line: they may be inputs already. Not where --crop asks for it."""
    from odm_deploy.quantization.calibration_images import SMALL_PX

    side = images.largest_side()
    if images.downscale > 1 and 0 < side < min(SMALL_PX, images.crop_px):
        say(
            f"small images: shrunk by {images.downscale}, none is more than {side} pixels high and wide; "
            f"take larger ones, or --lr if they are what the network is to enlarge"
        )


def _say_slow_here(policy: QuantizationPolicy) -> None:
    """That a model of these widths is not fast on this CPU, in a line, before the minutes that it takes to make it."""
    from odm_deploy.machine.host import adds_in_16_bits

    if adds_in_16_bits() and not policy.any_cpu and policy.body != policy.body.for_any_cpu():
        say(
            "note: this CPU has no VNNI instructions, so 8-bit models are about as slow as float ones here; "
            "those of --any-cpu are faster"
        )


def _depends_on_size(network: SuperResolutionNetwork, images: CalibrationImages) -> bool:
    """Whether ranges hold for images of one size only; says so, and how to get them for another."""
    from odm_deploy.quantization.size_dependence import depends_on_size

    if not network.is_foreign:
        return False
    first = next(iter(images))
    times = depends_on_size(network, first)
    if not times:
        return False
    name = max(times, key=lambda name: abs(math.log(max(times[name], 1e-9))))
    reads = "1 layer reads" if len(times) == 1 else f"{len(times)} layers read"
    say(
        f"what {reads} depends on the image's size ({name}: {times[name]:.2f} times as large at twice the height and "
        f"width): calibrated on whole inputs, the first {first.shape[3]}x{first.shape[2]}, and good near that size "
        f"only; for another one give images of it with --lr and --crop"
    )
    return True


def _export(model: QuantizedModel, checkpoint: Path, bundle: Path, shapes: InputShapes | None) -> None:
    """Write the bundle, with an engine for these shapes unless there are none."""
    from odm_deploy.building.options import BuildOptions
    from odm_deploy.cli.engine_options import build_progress
    from odm_deploy.export import write_bundle
    from odm_deploy.lowering.lower import LoweringOptions

    engine = None if shapes is None else BuildOptions(shapes=shapes)
    with build_progress() as on_progress:
        made = write_bundle(
            model, checkpoint, bundle, LoweringOptions(), engine, say, on_progress, for_cpus=True, track=progress_alone
        )
    say(f"wrote {made.path}: {', '.join(sorted(path.name for path in made.path.iterdir()))}")
