"""Rules of the tests that need a GPU: their machine's packages are what they are, and one dead GPU context is enough.

`make test-gpu` runs them in worker processes (pytest-xdist). One that crashes is replaced; one whose CUDA context is
dead after a test, where every call would fail from then on, ends itself, so that the next test meets a fresh one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).resolve().parent

# After these CUDA's documentation says: "the process must be terminated and relaunched".
_DEADLY = ("cudaErrorIllegalAddress", "cudaErrorLaunchFailure", "cudaErrorMisalignedAddress", "cudaErrorAssert")


def pytest_configure(config: pytest.Config) -> None:
    """A warning is no error here, unlike in other tests.

    GPU machines bring other versions of torch, onnx and pytest than `constraints.txt` names; what these deprecate says
    nothing about what is tested. It holds from the import of a test on, but only where nothing else is run with it.
    """
    asked = [Path(config.invocation_params.dir, str(arg).partition("::")[0]).resolve() for arg in config.args]
    if all(_HERE in (path, *path.parents) for path in asked):
        config.addinivalue_line("filterwarnings", "default")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End a worker whose CUDA context a test has killed; xdist names the test and goes on with another worker."""
    result = yield
    if "PYTEST_XDIST_WORKER" in os.environ and _HERE in item.path.parents and _context_is_dead():
        os._exit(1)
    return result


def _context_is_dead() -> bool:
    """Whether CUDA, if this process uses it, answers every call with the error of an earlier one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
    runtime: Any = sys.modules.get("cuda.bindings.runtime")
    return runtime is not None and runtime.cudaDeviceSynchronize()[0].name in _DEADLY
