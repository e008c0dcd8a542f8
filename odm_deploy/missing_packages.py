"""Packages of extras that are imported without asking first: what to say where one is not there."""

from __future__ import annotations

from importlib.util import find_spec

from odm_deploy.errors import MissingError
from odm_deploy.installing import install_extra

_EXTRA_OF = {
    **dict.fromkeys(("torch", "onnxscript", "onnx_ir", "safetensors", "threadpoolctl"), "export"),
    "matplotlib": "train",
}


def missing_package(error: ModuleNotFoundError) -> MissingError | None:
    """What is missing and the command that brings it; None where it is no package of an extra."""
    package = (error.name or "").partition(".")[0]
    extra = _EXTRA_OF.get(package)
    if extra is None:
        return None
    why = "what works on networks needs it" if extra == "export" else "this needs it"
    fix = install_extra(extra)
    if package == "onnx_ir" and find_spec("torch") is None:
        # Graphs are rewritten without torch, which the extra would bring: gigabytes.
        why, fix = "graphs are rewritten with it", "pip install onnx-ir"
    return MissingError(f"{package} is not installed", why=why, fix=fix)
