"""`odm-deploy inspect`: which layers an engine really runs as int8, and why the others do not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from odm_deploy.cli.imports import slow_imports
from odm_deploy.cli.options import completing, refuse_options, trust_option
from odm_deploy.kinds_of_files import is_checkpoint
from odm_deploy.progress import counted
from odm_deploy.terminal import emit_json, json_option, print_table, say, table

if TYPE_CHECKING:
    from odm_deploy.accounting import Accounting, Convention, LayerCost
    from odm_deploy.building.coverage import Coverage, LayerCoverage
    from odm_deploy.bundle import Bundle
    from odm_deploy.graphs.input_shapes import InputShapes
    from odm_deploy.quantization.model import QuantizedModel


NO_SHARE = 0.005
"""Share of the multiply-accumulates that saves no time."""
_COUNTED = {"honest": "what the file holds and an engine computes", "paper": "counted as in the papers' tables"}
"""Conventions in words."""


@click.command("inspect")
@click.argument("path", metavar="BUNDLE|ONNX|MODEL.pt", type=click.Path(path_type=Path))
@click.option("--shapes", default="1x3x270x480", show_default=True, help="Input shape that MACs are counted at.")
@click.option(
    "--runtime",
    metavar="NAME",
    shell_complete=completing("onnxruntime", "openvino"),
    help="Ask onnxruntime or openvino what it makes of the graph for CPUs.  [default: TensorRT's builder, where there "
    "is none the first of these that is installed]",
)
@click.option("--rebuild", is_flag=True, help="Build anew rather than read what the bundle recorded.")
@click.option("--timeout", "timeout_s", type=float, default=600.0, show_default=True, help="Seconds a build may take.")
@click.option(
    "--convention",
    type=click.Choice(["honest", "paper"]),
    default="honest",
    show_default=True,
    help="How the cost of a model.pt is counted: all it holds and an engine computes, or as in the papers' tables.",
)
@trust_option
@json_option
def command(
    path: Path,
    shapes: str,
    runtime: str | None,
    rebuild: bool,
    timeout_s: float,
    convention: Convention,
    as_json: bool,
) -> None:
    """Show what each layer runs as, from the builder's own layer table, by count and by multiply-accumulates (MACs).

    TensorRT falls back from int8 to float without a warning; its layer table is the only evidence. Where no TensorRT
    is, and no engine in the bundle, a note says so, and the layers are those that a runtime on this CPU runs. Layers
    that the graph quantizes and it runs as float, if they have a share of the MACs, and a graph that quantizes
    nothing, end with exit code 3. A model.pt is listed with its grids instead, and with what it costs: storage, and
    bit operations (2 * MACs * weight bits * input bits) for a 1920x1080 output.
    """
    from odm_deploy.bundle import Bundle
    from odm_deploy.errors import MissingError
    from odm_deploy.graphs.input_shapes import parse_shapes

    if is_checkpoint(path):
        why, fix = "it is no graph yet, and its cost is told for one output size", "export it, and inspect its bundle"
        refuse_options(("shapes", "runtime", "rebuild", "timeout_s"), path, why, fix)
        _inspect_checkpoint(path, convention, as_json)
        return
    refuse_options(("convention",), path, "only the cost of a model.pt is counted", "name the model.pt")
    sizes = parse_shapes(shapes)
    bundle = Bundle.open(path, "a bundle, an ONNX file or a model.pt is wanted")
    try:
        found, source = _layers(bundle, sizes, runtime, rebuild=rebuild, timeout_s=timeout_s)
    except MissingError as error:
        # Whoever names a runtime, or wants an engine built, gets that or nothing.
        if runtime is not None or rebuild or (runtime := _cpu_runtime()) is None:
            raise
        say(
            f"note: {error.what}: {error.why}; so these are the layers that {runtime} runs on this CPU. "
            f"Those of an engine: {error.fix}"
        )
        found, source = _layers(bundle, sizes, runtime)
    if as_json:
        emit_json({**found.to_dict(), "source": source})
    else:
        _print(found, source)
    _judge(found, path, bundle, runtime)


def _layers(
    bundle: Bundle, sizes: InputShapes, runtime: str | None, *, rebuild: bool = False, timeout_s: float = 600.0
) -> tuple[Coverage, str]:
    """What the graph asks for and what it runs as, and where that is from; raises as `bundle_coverage`."""
    from odm_deploy.building.bundle_coverage import bundle_coverage
    from odm_deploy.building.cpu_layers import CPU_RUNTIMES
    from odm_deploy.runtimes.onnx.trial import try_in_child

    if (name := (runtime or "").replace("-", "_")) in CPU_RUNTIMES:
        taken = bundle.seen_by(name)
        if not taken.is_as_exported:
            try_in_child(name, taken.onnx_bytes, str(bundle))
    return bundle_coverage(bundle, sizes, runtime=runtime, rebuild=rebuild, timeout_s=timeout_s, say=say)


def _cpu_runtime() -> str | None:
    """The runtime that `upscale` takes on a CPU here; None where neither is installed."""
    from odm_deploy.building.cpu_layers import CPU_RUNTIMES
    from odm_deploy.runtimes.registry import FASTEST_FIRST, why_unusable

    return next((name for name in FASTEST_FIRST if name in CPU_RUNTIMES and not why_unusable(name)), None)


def _judge(found: Coverage, path: Path, bundle: Bundle, runtime: str | None) -> None:
    """Fail where the engine does not do what the graph asks for, or where the graph asks for nothing."""
    from odm_deploy.errors import GateError

    # Work that cannot be counted is not none: behind an operator that ONNX does not know, shapes stay open.
    known = all(layer.macs is not None for layer in found.layers if layer.quantized)
    if not found.quantized_layers or (known and found.macs and not found.quantized_macs):
        from odm_deploy.lowering.lint import lint

        if on_integers := [finding for finding in lint(bundle.graph) if finding.rule == "integer-operators"]:
            raise GateError(
                f"nothing in {path} is quantized in the QDQ format, the only one that is judged here",
                why=f"{on_integers[0].node}: {on_integers[0].message}",
                fix=on_integers[0].fix,
            )
        raise GateError(
            f"nothing in {path} is quantized",
            why=f"none of its {len(found.layers)} convolutions and matrix products has a DequantizeLinear before it",
            fix="quantize the network first",
        )
    if not (fallbacks := found.fallbacks) or not found.fallbacks_matter:
        return
    names = ", ".join(layer.name for layer in fallbacks[:3])
    explained = [layer for layer in fallbacks if layer.rules]
    shown = (explained or fallbacks)[0]
    layers = counted(found.quantized_layers, "quantized layer")
    raise GateError(
        f"{len(fallbacks)} of {layers} {'does' if len(fallbacks) == 1 else 'do'} not run as int8",
        why=f"{names}{' ...' if len(fallbacks) > 3 else ''}: {shown.reason}",
        fix=_what_to_do(path, runtime, is_explained=bool(explained)),
    )


def _what_to_do(path: Path, runtime: str | None, *, is_explained: bool) -> str:
    if runtime == "onnxruntime":
        return "quantize with --profile integer, or see --runtime openvino"
    if runtime is not None:
        return ""
    if is_explained:
        return f"see odm-deploy lint {path}"
    return "lint knows nothing about it either: this is the builder's own choice, for these shapes"


def _print(found: Coverage, source: str) -> None:
    from odm_deploy.building.coverage import MISSING

    def row(layer: LayerCoverage) -> tuple[str, ...]:
        share = f"{layer.macs / found.macs:.1%}" if layer.macs and found.macs else "?"
        bits = f"w{layer.weight_bits}a{layer.activation_bits}" if layer.weight_bits else ""
        # A float layer that goes by another name there is float all the same.
        runs_as = "float" if layer.precision == MISSING and not layer.quantized else layer.precision
        return layer.name, bits, runs_as, share, layer.reason

    head = ("layer", "bits", "runs as", "share of MACs", "why not int8")
    print_table(table(f"layers ({source})", head, map(row, found.layers), left=("bits", "runs as", "why not int8")))
    share = found.int8_share()
    all_known = all(layer.macs is not None for layer in found.layers)
    if all_known and found.macs and found.int8_macs / found.macs < NO_SHARE:
        share += ": next to nothing, so it is no faster than in float"
    if found.fallbacks and not found.fallbacks_matter:
        share += ", and 0.0% of the MACs are in the other quantized ones"
    click.echo(f"int8: {found.int8_layers} of {counted(found.quantized_layers, 'quantized layer')}{share}")


def _inspect_checkpoint(path: Path, convention: Convention, as_json: bool) -> None:
    """What a model.pt quantizes, on which grids, and what that costs."""
    from odm_deploy.files import require_file
    from odm_deploy.kinds_of_files import MODEL_WANTED

    require_file(path, MODEL_WANTED)
    with slow_imports():
        from odm_deploy.accounting import account
        from odm_deploy.checkpoint import load_model

    model = load_model(path)
    cost = account(model, convention=convention)
    by_name = {layer.name: layer for layer in cost.layers}
    if as_json:
        height, width = cost.output_px
        emit_json(
            {
                "network": model.network.name,
                "scale": model.scale,
                "exact": None if model.exact is None else dataclasses.asdict(model.exact),
                "metadata": model.metadata,
                "convention": convention,
                "output_px": {"height": height, "width": width},
                "storage_bytes": cost.storage_bytes,
                "macs": cost.macs,
                "bit_operations": cost.bit_operations,
                "layers": [
                    {
                        "name": name,
                        "weight_bits": layer.weight_bits,
                        **layer.grid.to_dict(),
                        **by_name[name].to_dict(),
                    }
                    for name, layer in model.layers.items()
                ],
                "unquantized": [
                    {"name": layer.name, **layer.to_dict()}
                    for layer in cost.layers
                    if layer.name not in model.layers and layer.name not in model.signals
                ],
                "signals": [{"name": name, **signal.grid.to_dict()} for name, signal in model.signals.items()],
            }
        )
        return
    _print_checkpoint(model, cost)


def _print_checkpoint(model: QuantizedModel, cost: Accounting) -> None:
    grids = model.grids

    def row(layer: LayerCost) -> tuple[str, ...]:
        cells = ("float", "", "")
        if (grid := grids.get(layer.name)) is not None:
            is_layer = layer.name in model.layers
            bits = f"w{layer.weight_bits}a{layer.activation_bits}" if is_layer else f"a{grid.bits}"
            cells = (bits, f"{grid.lower:.4g} .. {grid.upper:.4g}", str(grid.zero_point))
        amounts = (f"{layer.storage_bits / 8192:.1f}", f"{layer.macs / 1e9:.3f}", f"{layer.bit_operations / 1e9:.1f}")
        return layer.name or "(network)", *cells, *amounts

    title = f"{model.network.title} x{model.scale}: {counted(len(model.layers), 'quantized layer')}" + (
        f", {counted(len(model.signals), 'tensor')} between layers on grids" if model.signals else ""
    )
    head = ("layer", "bits", "levels", "zero point", "KiB", "GMAC", "GBitOPs")
    print_table(table(title, head, map(row, cost.layers)))
    height, width = cost.output_px
    click.echo(
        f"{cost.storage_bytes / 2**20:.3f} MiB; {cost.macs / 1e9:.1f} GMAC and {cost.bit_operations / 1e12:.3f} "
        f"tera-BitOPs for a {width}x{height} output ({_COUNTED[cost.convention]})"
    )
