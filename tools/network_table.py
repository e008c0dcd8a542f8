"""Every network at several widths: int8 coverage, agreement, times and sizes, as in docs/measurements/agreement.md.

python tools/network_table.py --out table.json                            all of it, tens of minutes on one core
python tools/network_table.py --network swinir --bits 4 --out table.json  adds to, or replaces in, the same file

Networks are those of sample_networks.py: published size, seeded random weights.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from sample_networks import SHAPES, load_crops, random_network
from toolbox import COMMAND, markdown_table, read_json, write_json

from odm_deploy import quantize
from odm_deploy.building.build import build_engine
from odm_deploy.building.coverage import coverage
from odm_deploy.building.options import BuildOptions
from odm_deploy.checkpoint import save_model
from odm_deploy.errors import OdmError
from odm_deploy.imaging.pairs import Sample
from odm_deploy.imaging.pixels import to_batch
from odm_deploy.lowering.lower import lower
from odm_deploy.machine.builders import can_build, find_builder
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.registry import network_names
from odm_deploy.proof.parity import compare
from odm_deploy.proof.teacher_forced_layers import compare_layers
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.runtimes.registry import runtime_class
from odm_deploy.terminal import run

RUNTIMES = ("onnxruntime", "openvino")

FLOAT_OPERATORS = {"attn.qkv": "LayerNorm", "mlp.fc1": "LayerNorm", "attn.proj": "softmax", "mlp.fc2": "GELU"}
"""What computes the input of SwinIR's quantized layers."""


@click.command(context_settings=COMMAND)
@click.option("--network", "networks", multiple=True, default=tuple(network_names()), help="Network; repeatable.")
@click.option("--bits", multiple=True, type=int, default=(8, 4, 2), help="Width of the body; repeatable.")
@click.option("--images", default=2, show_default=True, help="Crops to compare on.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file that rows are added to.")
def command(networks: tuple[str, ...], bits: tuple[int, ...], images: int, out: Path) -> None:
    """Measure, keep every row at once, and print the table as markdown."""
    rows: dict[str, dict[str, Any]] = read_json(out) if out.exists() else {}
    crops = load_crops(images)
    for name in networks:
        network = random_network(name, crops)
        for width in bits:
            rows[f"{name} {width}"] = {"network": name, "bits": width, **measure(network, width, crops)}
            write_json(out, rows)
    click.echo(to_markdown(rows))


def measure(network: SuperResolutionNetwork, bits: int, crops: list[np.ndarray]) -> dict[str, Any]:
    """One row: quantize the body, lower, build, compare."""
    model = quantize(network, bits, crops)
    started = time.perf_counter()
    graph = lower(model)
    row: dict[str, Any] = {"quantized_layers": len(model.layers), "export_s": time.perf_counter() - started}
    with tempfile.TemporaryDirectory(prefix="network_table_") as folder:
        onnx_path, plan = Path(folder) / "model.onnx", Path(folder) / "engine.plan"
        save_model(model, Path(folder) / "model.pt")
        onnx_path.write_bytes(graph.SerializeToString(deterministic=True))
        row |= {"model_bytes": (Path(folder) / "model.pt").stat().st_size, "onnx_bytes": onnx_path.stat().st_size}
        rtx = find_builder("tensorrt_rtx")
        if can_build(rtx):
            report = build_engine(onnx_path, plan, BuildOptions(builder=rtx.name, shapes=SHAPES))
            found = coverage(onnx_path, list(report.layers), SHAPES)
            row |= {
                "builder": f"{report.builder} {report.version}",
                "build_s": report.seconds,
                "plan_bytes": report.plan_bytes,
                "int8_layers": found.int8_layers,
                "int8_share_of_macs": found.int8_macs / max(found.macs, 1),
            }
    row["runtimes"] = {name: agreement(model, graph, name, crops) for name in RUNTIMES}
    return row


def agreement(model: QuantizedModel, graph: Any, name: str, crops: list[np.ndarray]) -> dict[str, Any]:
    """What `verify` finds on a runtime, and the flip rate behind each kind of float operator."""
    kind = runtime_class(name)
    samples = [Sample(str(index), crop) for index, crop in enumerate(crops)]
    try:
        images = [to_batch(crop) for crop in crops]
        layers = compare_layers(model, graph, kind.open_bytes, images)
        with kind.open_bytes(graph.SerializeToString()) as runtime:
            report = compare(model, runtime, samples, layers)
    except OdmError as error:
        return {"refused": str(error)}
    behind: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for layer in report.layers:
        cause = next((op for suffix, op in FLOAT_OPERATORS.items() if layer.name.endswith(suffix)), "convolution")
        behind[cause][0] += layer.flips
        behind[cause][1] += layer.codes
    return {
        "version": report.runtime["version"],
        "identical": report.distance.identical,
        "psnr_db": report.distance.psnr_db,
        "floor_identical": min(draw.identical for draw in (report.floor, *report.draws)),
        "floor_psnr_db": report.furthest_floor_db,
        "worst_flip_rate": max(layer.flip_rate for layer in report.layers),
        "worst_flip_rate_off_ties": max(layer.flip_rate - layer.tie_flip_rate for layer in report.layers),
        "furthest_from_tie_steps": max(layer.furthest_steps for layer in report.layers),
        "flip_rate_behind": {cause: flips / codes for cause, (flips, codes) in behind.items()},
        "agrees": report.within_floor,
    }


def to_markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as one table."""
    head = ["network", "bits", "int8 layers", "share of MACs", "export", "build", "model.pt", "bundle"]
    head += [f"{name}: PSNR to reference (floor), worst flip rate" for name in RUNTIMES]
    lines: list[list[str]] = []
    for row in rows.values():
        size = (row["onnx_bytes"] + row.get("plan_bytes", 0)) / 2**20
        built = "build_s" in row
        cells = [row["network"], str(row["bits"]), f"{row.get('int8_layers', '?')} of {row['quantized_layers']}"]
        cells += [f"{row['int8_share_of_macs']:.1%}" if built else "?", f"{row['export_s']:.1f} s"]
        cells += [f"{row['build_s']:.1f} s" if built else "?", f"{row['model_bytes'] / 2**20:.2f} MiB"]
        cells += [f"{size:.2f} MiB", *(_agreement_cell(row["runtimes"][name]) for name in RUNTIMES)]
        lines.append(cells)
    return markdown_table(head, lines)


def _agreement_cell(found: dict[str, Any]) -> str:
    if "refused" in found:
        return found["refused"]
    verdict = "agrees" if found["agrees"] else "**deviates**"
    return f"{found['psnr_db']:.1f} dB ({found['floor_psnr_db']:.1f}), {found['worst_flip_rate']:.1e}, {verdict}"


if __name__ == "__main__":
    run(command, "network_table")
