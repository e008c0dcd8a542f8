"""The `odm-deploy` command. Hardly anything is imported here: what Ctrl-C does is settled before the rest is."""

from __future__ import annotations

from odm_deploy.interruption import told_of_interruption


def main() -> None:
    """Entry point of `odm-deploy`."""
    with told_of_interruption():
        from odm_deploy.cli.program import odm_deploy
        from odm_deploy.terminal import run

        run(odm_deploy, "odm-deploy")
