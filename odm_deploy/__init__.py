"""Quantized super-resolution networks in production: exact QDQ ONNX, TensorRT INT engines, and proof of parity.

The names below load on first use, so that `import odm_deploy` costs milliseconds and needs neither torch nor a runtime.
"""

from __future__ import annotations

from importlib import import_module

from odm_deploy.version import __version__

# As typing names it, whose import would take most of the time of this one.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from odm_deploy.bundle import Bundle
    from odm_deploy.engine import Engine
    from odm_deploy.errors import BuildError, GateError, InputError, MissingError, OdmError, UsageError
    from odm_deploy.grid import Grid
    from odm_deploy.imaging.image import Image
    from odm_deploy.imaging.reading import read_image
    from odm_deploy.proof.verify import VerifyOptions, verify
    from odm_deploy.quantization.quantize import quantize
    from odm_deploy.runtimes.options import RuntimeOptions

_HOMES = {
    "Bundle": "odm_deploy.bundle",
    "Engine": "odm_deploy.engine",
    "Grid": "odm_deploy.grid",
    "Image": "odm_deploy.imaging.image",
    "RuntimeOptions": "odm_deploy.runtimes.options",
    "VerifyOptions": "odm_deploy.proof.verify",
    "quantize": "odm_deploy.quantization.quantize",
    "read_image": "odm_deploy.imaging.reading",
    "verify": "odm_deploy.proof.verify",
    "BuildError": "odm_deploy.errors",
    "GateError": "odm_deploy.errors",
    "InputError": "odm_deploy.errors",
    "MissingError": "odm_deploy.errors",
    "OdmError": "odm_deploy.errors",
    "UsageError": "odm_deploy.errors",
}

__all__ = [
    "BuildError",
    "Bundle",
    "Engine",
    "GateError",
    "Grid",
    "Image",
    "InputError",
    "MissingError",
    "OdmError",
    "RuntimeOptions",
    "UsageError",
    "VerifyOptions",
    "__version__",
    "quantize",
    "read_image",
    "verify",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        try:
            return getattr(import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            from odm_deploy.missing_packages import missing_package

            raise missing_package(error) or error from None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
