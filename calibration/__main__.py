"""`python -m calibration`: `odm-deploy quantize`, by the name it had when it ran from a clone only."""

from __future__ import annotations

from odm_deploy.cli.quantize import command
from odm_deploy.terminal import run

if __name__ == "__main__":
    run(command, "python -m calibration")
