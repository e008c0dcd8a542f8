"""`odm-deploy doctor`: what is installed here, what it allows, and the command that brings what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from odm_deploy.terminal import emit_json, json_option

if TYPE_CHECKING:
    from odm_deploy.doctor import Environment


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show what is installed here, what it allows, and how to get the rest."""
    from odm_deploy.doctor import look_around

    environment = look_around()
    if as_json:
        emit_json(environment.to_dict())
    else:
        click.echo(_render(environment))


def _render(environment: Environment) -> str:
    lines = [f"Python {environment.python} on {environment.system}"]
    cpu = environment.cpu
    features = " ".join(cpu["features"]) or "instruction sets unknown"
    lines.append(f"CPU    {cpu['name']}, {cpu['physical_cores']} cores, {features}")
    for gpu in environment.gpus:
        runs = " and ".join(gpu["runs_engines_of"]) or "neither TensorRT"
        facts = f"{gpu['name']}, {gpu['compute_capability']}, {gpu['memory_mib']} MiB"
        lines.append(f"GPU    {facts}; runs engines of {runs}")
    if not environment.gpus:
        lines.append("GPU    none that the NVIDIA driver can use")
    if environment.driver:
        lines.append(f"Driver {environment.driver}")
    lines += ["", "Packages"]
    width = max(map(len, environment.packages))
    lines += [f"  {name:<{width}}  {version or '-'}" for name, version in environment.packages.items()]
    lines += ["", "What this machine can do"]
    width = max(len(ability.name) for ability in environment.abilities)
    for ability in environment.abilities:
        detail = ability.with_what if ability.works else "; ".join(filter(None, (ability.problem, ability.fix)))
        lines.append(f"  {'yes' if ability.works else 'no ':<3}  {ability.name:<{width}}  {detail}")
    if environment.warnings:
        lines += ["", "Warnings", *(f"  {warning}" for warning in environment.warnings)]
    return "\n".join(lines)
