"""How verbs that upscale open a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from odm_deploy.terminal import say

if TYPE_CHECKING:
    from odm_deploy.engine import Engine
    from odm_deploy.imaging.pixels import Bits


def open_engine(
    bundle: Path, runtime: str | None, threads: int | None, tile: int | None, bits: Bits | None = None
) -> Engine:
    """Open a bundle, and say which runtimes were passed over. Raises as `Engine.open`, also for a file outside one."""
    from odm_deploy.bundle import Bundle
    from odm_deploy.engine import Engine
    from odm_deploy.runtimes.options import RuntimeOptions

    opened = Bundle.open(bundle)
    opened.require_manifest()
    engine = Engine.open(opened, runtime, RuntimeOptions(threads=threads), tile=tile, bits=bits)
    for reason in engine.runtime.passed_over:
        say(f"passed over: {reason}")
    return engine
