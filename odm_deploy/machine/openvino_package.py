"""OpenVINO's package, without its telemetry.

Its import tells a server of Intel's that it was imported, once `openvino_telemetry` is installed, as it is by default,
and nobody has opted out by hand; and it asks nobody. It does so from a process of its own, which without a network is
there for minutes after this one has ended. Who upscales images has not been asked either, so it is not found here.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """The module `openvino`; as it is where somebody else has imported it already.

    Raises:
        ImportError: it is not installed.
    """
    if "openvino" in sys.modules or _TELEMETRY in sys.modules:
        return importlib.import_module("openvino")
    # What an import finds here is taken for not installed, and OpenVINO has a stub for that case.
    sys.modules[_TELEMETRY] = None  # pyright: ignore[reportArgumentType] - as the import system has it
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[_TELEMETRY]
