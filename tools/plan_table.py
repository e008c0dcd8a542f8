"""Plans of every network at every width: int8 coverage, bytes and build times, as in docs/measurements/engines.md.

python tools/plan_table.py --out plans.json                            all of it, ten minutes on one core
python tools/plan_table.py --network swinir --bits 4 --out plans.json  adds to, or replaces in, the same file

Networks are those of sample_networks.py: published size, seeded random weights. What is not quantized is float16. No
GPU is needed where `tensorrt_rtx` is installed.
"""

from __future__ import annotations

import re
import resource
import tempfile
import zlib
from pathlib import Path
from typing import Any

import click
from sample_networks import SHAPES, load_crops, random_network
from toolbox import COMMAND, markdown_table, read_json, write_json

from odm_deploy import quantize
from odm_deploy.building.build import build_engine
from odm_deploy.building.coverage import coverage
from odm_deploy.building.options import BuildOptions
from odm_deploy.lowering.lower import LoweringOptions, lower
from odm_deploy.machine.builders import choose_builder
from odm_deploy.networks.registry import network_names
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.terminal import run

MIB = 2**20
REGIONS = ("body", "all")
"""What is quantized: the body alone, or body end and tail, too, at 8 bits."""
COLUMNS = ("network", "quantized", "bits", "int8 layers", "share of MACs")
SIZES = ("weights fp32", "weights as run", "plan", "kernel sources in it", "plan compressed")
TIMES = ("build", "processor time")


@click.command(context_settings=COMMAND)
@click.option("--network", "networks", multiple=True, default=tuple(network_names()), help="Network; repeatable.")
@click.option("--bits", multiple=True, type=int, default=(8, 6, 4, 3, 2), help="Width of the body; repeatable.")
@click.option("--quantized", "regions", multiple=True, type=click.Choice(REGIONS), default=REGIONS, help="Repeatable.")
@click.option("--builder", help="tensorrt or tensorrt_rtx  [default: what works here]")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file that rows are added to.")
def command(
    networks: tuple[str, ...], bits: tuple[int, ...], regions: tuple[str, ...], builder: str | None, out: Path
) -> None:
    """Build, keep every row at once, and print the table as markdown."""
    chosen = choose_builder(builder).name
    rows: dict[str, dict[str, Any]] = read_json(out) if out.exists() else {}
    crops = load_crops(1)
    for name in networks:
        network = random_network(name, crops)
        for width in bits:
            for region in regions:
                wide = LayerBits(8, 8) if region == "all" else None
                policy = QuantizationPolicy(body=LayerBits(width, width), body_end=wide, tail=wide)
                model = quantize(network, policy, crops)
                row = {"network": name, "quantized": region, "bits": width, **measure(model, chosen)}
                rows[f"{name} {region} {width}"] = row
                write_json(out, rows)
    click.echo(to_markdown(rows))


def measure(model: QuantizedModel, builder: str) -> dict[str, Any]:
    """Build one plan, its rest in float16, and count what is in it."""
    with tempfile.TemporaryDirectory(prefix="plan_table_") as folder:
        onnx_path = Path(folder) / "model.onnx"
        onnx_path.write_bytes(lower(model, LoweringOptions(precision="fp16")).SerializeToString())
        before_s = children_cpu_s()
        built = build_engine(onnx_path, Path(folder) / "engine.plan", BuildOptions(builder=builder, shapes=SHAPES))
        cpu_s = children_cpu_s() - before_s
        plan = built.plan.read_bytes()
        found = coverage(onnx_path, built.layers, SHAPES)
    return {
        "builder": f"{built.builder} {built.version}",
        "int8_layers": found.int8_layers,
        "quantized_layers": found.quantized_layers,
        "int8_share_of_macs": found.int8_macs / found.macs,
        **weight_bytes(model),
        "plan_bytes": len(plan),
        "source_bytes": source_bytes(plan),
        "compressed_bytes": len(zlib.compress(plan)),
        "build_s": built.seconds,
        "cpu_s": cpu_s,
    }


def children_cpu_s() -> float:
    """Processor time of finished child processes: unlike a clock, it does not run while other programs do."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def weight_bytes(model: QuantizedModel) -> dict[str, int]:
    """Bytes of all weights in float32, and as an engine keeps them: codes in int8, everything else in float16."""
    # Frozen layers hold codes in place of parameters.
    floats = sum(parameter.numel() for parameter in model.network.parameters())
    codes = sum(layer.codes.numel() for layer in model.layers.values())
    return {"float32_bytes": 4 * (floats + codes), "run_bytes": 2 * floats + codes}


def source_bytes(plan: bytes) -> int:
    """Bytes of a plan that are the text of programs: TensorRT for RTX compiles most of its kernels where it runs."""
    return sum(len(match[0]) for match in re.finditer(rb"[\t\n\r\x20-\x7e]{4096,}", plan))


def to_markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as one table."""
    sizes = ("float32_bytes", "run_bytes", "plan_bytes", "source_bytes", "compressed_bytes")
    cells = [
        [
            *(row["network"], row["quantized"], str(row["bits"])),
            f"{row['int8_layers']} of {row['quantized_layers']}",
            f"{row['int8_share_of_macs']:.1%}",
            *(f"{row[key] / MIB:.1f} MiB" for key in sizes),
            *(f"{row[key]:.1f} s" for key in ("build_s", "cpu_s")),
        ]
        for row in rows.values()
    ]
    return markdown_table([*COLUMNS, *SIZES, *TIMES], cells)


if __name__ == "__main__":
    run(command, "plan_table")
