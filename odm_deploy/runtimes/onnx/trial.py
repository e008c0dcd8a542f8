"""The first run of a graph that this program did not write, in a process of its own.

Runtimes are native code, which a broken graph can end with a signal. A graph is loaded and run once on a small image
elsewhere; what crashes there becomes a line here. What is merely refused is left for the real opening to report.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import odm_deploy
from odm_deploy.errors import InputError, OdmError
from odm_deploy.runtimes.onnx.openvino_probe import need_no_probe

TIMEOUT_S = 45.0
"""Ends what does not end: a network that loads and upscales one small image takes seconds."""
MEMORY_BYTES = 2**32
"""What loading and one small image may take beside some copies of the graph."""
_COPIES = 6
"""Of a graph's weights: as read, parsed, and packed by a runtime, with room."""
SIDE_PX = 32
"""Height and width of the small image."""
_LARGEST = 2**24
"""Elements of a feed; larger ones are not made."""
_REFUSED = 3


def try_in_child(runtime: str, model: bytes, label: str) -> None:
    """Load a serialized graph on a runtime, and run it once, in another process. `label` names it in error messages.

    Raises:
        InputError: the process crashed, or did not end within `TIMEOUT_S`.
    """
    home = str(Path(odm_deploy.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {home!r}); from odm_deploy.runtimes.onnx.trial import main; main()"
    command = [sys.executable, "-P", "-c", code, runtime]
    try:
        done = subprocess.run(command, input=model, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        why = f"one small image takes more than {TIMEOUT_S:g} s"
        fix = "try again when the machine is less busy, or another --runtime"
        raise InputError(f"{label} does not get done on {runtime}", why=why, fix=fix) from None
    # A signal is negative on POSIX, an exception of Windows a large number; Python itself ends with 0, 1 or 2.
    if done.returncode not in (0, 1, 2, _REFUSED):
        why, fix = (
            f"the process that tried ended with {done.returncode}",
            "try another --runtime, or export the model again",
        )
        raise InputError(f"{label} crashes {runtime}", why=why, fix=fix)
    if done.returncode == 0 and runtime == "openvino":
        need_no_probe(model)


def main() -> None:
    """In the other process: the graph on stdin, the runtime's name as the argument."""
    import numpy as np

    from odm_deploy.runtimes.registry import runtime_class

    model = sys.stdin.buffer.read()
    _limit_memory(MEMORY_BYTES + _COPIES * len(model))
    need_no_probe(model)
    try:
        with runtime_class(sys.argv[1]).open_bytes(model) as runtime:
            feeds = {}
            for info in runtime.inputs:
                leading = len(info.shape) - 2 if info.images.layout == "nchw" else len(info.shape) - 3
                sizes = [1 if axis < leading else SIDE_PX for axis in range(len(info.shape))]
                shape = [size if known is None else known for known, size in zip(info.shape, sizes, strict=True)]
                if np.prod(shape, dtype=np.float64) > _LARGEST:
                    return
                feeds[info.name] = np.zeros(shape, info.dtype)
            with suppress(OdmError):
                runtime.run(feeds)
    except OdmError:
        sys.exit(_REFUSED)
    except MemoryError:
        os.abort()


def _limit_memory(size: int) -> None:
    """Let this process have no more than `size` bytes; where the system cannot do that, as much as there is."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
