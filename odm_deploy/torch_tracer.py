"""PyTorch's tracer, which exports and counts operations, imported without what one machine never needs."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress

_TRACER = "torch._dynamo"
_LEFT_OUT = "torch.distributed.fsdp._fully_shard"
"""Networks spread over machines: a fifth of what importing the tracer takes. It asks whether PyTorch has it."""


def import_tracer() -> None:
    """Import the tracer, unless somebody has; where it does not do without what is left out, whoever needs it will."""
    if _TRACER in sys.modules or _LEFT_OUT in sys.modules:
        return
    # Python's own way to say that there is no such module.
    sys.modules[_LEFT_OUT] = None  # pyright: ignore[reportArgumentType]
    try:
        with suppress(ImportError):
            importlib.import_module(_TRACER)
    finally:
        del sys.modules[_LEFT_OUT]
