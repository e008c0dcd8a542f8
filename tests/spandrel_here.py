"""Importing spandrel without torchvision.

spandrel imports two names of torchvision for two networks that no test builds. Where torchvision is not installed (its
packages pin one build of torch each), empty modules stand in for it, in the tests' process only.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest


def require_spandrel() -> None:
    """Make `import spandrel` work, or skip."""
    if importlib.util.find_spec("spandrel") is None:
        pytest.skip("spandrel is not installed")
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    modules = {name: ModuleType(name) for name in names}
    for name in ("InterpolationMode", "rotate", "normalize"):
        setattr(modules[names[-1]], name, None)
    sys.modules.update(modules)
