"""Storage and bit operations of the networks at given widths: Table 4 of the ODM paper, or the honest count.

python tools/accounting.py                                          the paper's networks at 32 and 2 bits
python tools/accounting.py --network swinir --bits 4 --convention honest --layers
python tools/accounting.py --network edsr --bits 2 --method ddtb --method daq --method odm_v1
                                                                    with what each method adds (training/overhead.py)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import click
import torch
from toolbox import COMMAND

from odm_deploy.accounting import (
    FULL_HD_PX,
    PAPER_RULES,
    Accounting,
    Convention,
    account,
    accounted_network,
    body_policy,
)
from odm_deploy.networks.registry import build_network
from odm_deploy.terminal import emit_json, json_option, run

_TABLE_4 = ("edsr", "rdn", "srresnet")


@click.command(context_settings=COMMAND)
@click.option("--network", "networks", multiple=True, default=_TABLE_4, help="Network; repeat for several.")
@click.option("--scale", default=4, show_default=True, help="Output pixels per input pixel along each axis.")
@click.option("--bits", multiple=True, default=(32, 2), help="Width of weights and activations: 2 to 8, or 32 (float).")
@click.option(
    "--convention",
    type=click.Choice(["paper", "honest"]),
    default="paper",
    show_default=True,
    help="paper: the published figures. honest: what model.pt holds and an engine computes.",
)
@click.option("--method", "methods", multiple=True, help="Count what a training method adds, too; repeatable.")
@click.option("--layers", "show_layers", is_flag=True, help="Also list every layer.")
@json_option
def command(
    networks: tuple[str, ...],
    scale: int,
    bits: tuple[int, ...],
    convention: Convention,
    methods: tuple[str, ...],
    show_layers: bool,
    as_json: bool,
) -> None:
    """Count storage and bit operations for a 1920x1080 output image."""
    costs = [
        (width, method, cost)
        for name in networks
        for width in bits
        for method, cost in _costs(name, scale, width, convention, methods)
    ]
    if as_json:
        height, width = FULL_HD_PX
        entries = [_entry(width, method, cost, show_layers=show_layers) for width, method, cost in costs]
        emit_json({"convention": convention, "output_px": {"height": height, "width": width}, "networks": entries})
        return
    click.echo(f"{'network':<20}{'bits':>5}{'storage K words':>17}{'MiB':>9}{'GMAC':>10}{'BitOPs T':>11}")
    for width, method, cost in costs:
        click.echo(
            f"{f'{cost.network} x{cost.scale} {method}':<20}{width:>5}{cost.storage_words / 1e3:>17.1f}"
            f"{cost.storage_bytes / 2**20:>9.2f}{cost.macs / 1e9:>10.1f}{cost.bit_operations / 1e12:>11.1f}"
        )
        if show_layers:
            _print_layers(cost)
    if convention == "paper":
        for name in dict.fromkeys(networks):
            if name in PAPER_RULES:
                click.echo(f"{name}: {PAPER_RULES[name].reason}")


def _costs(
    name: str, scale: int, bits: int, convention: Convention, methods: tuple[str, ...]
) -> Iterator[tuple[str, Accounting]]:
    """The cost without a method's additions, or with those of each method, by its name."""
    network, policy = accounted_network(name, scale, convention), body_policy(bits)
    plain = account(network, policy, convention=convention)
    if policy is None or not methods:
        yield "", plain
        return
    from training.methods.registry import build_method
    from training.overhead import calibrated_on_noise, with_overhead

    for method in methods:
        torch.manual_seed(1)
        fresh = build_network(name, dataclasses.asdict(network.config))
        model = calibrated_on_noise(fresh, policy, build_method({"name": method}))
        yield method, with_overhead(plain, model, convention)


def _entry(bits: int, method: str, cost: Accounting, *, show_layers: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "network": cost.network,
        **({"method": method} if method else {}),
        "scale": cost.scale,
        "bits": bits,
        "storage_kwords": cost.storage_words / 1e3,
        "storage_bytes": cost.storage_bytes,
        "macs": cost.macs,
        "bit_operations_t": cost.bit_operations / 1e12,
    }
    if show_layers:
        entry["layers"] = [
            {key: getattr(layer, key) for key in ("name", "weight_bits", "activation_bits")} | layer.to_dict()
            for layer in cost.layers
        ]
    return entry


def _print_layers(cost: Accounting) -> None:
    for layer in cost.layers:
        widths = f"w{layer.weight_bits}a{layer.activation_bits}" if layer.macs else ""
        click.echo(
            f"  {layer.name:<46}{layer.kind:<16}{widths:>7}{layer.storage_bits / 8 / 1024:>10.1f} KiB"
            f"{layer.macs / 1e9:>10.2f} GMAC{layer.bit_operations / 1e12:>10.3f} T"
        )


if __name__ == "__main__":
    run(command, "accounting")
