"""The old place of `odm_deploy.bundle.manifest`; goes when nobody imports it from here."""

from odm_deploy.bundle.manifest import (
    FORMAT,
    GOLDEN_FILE,
    MANIFEST_FILE,
    ONNX_FILE,
    PLAN_FILE,
    VERSION,
    Manifest,
    manifest_beside,
    read_manifest,
)

__all__ = [
    "FORMAT",
    "GOLDEN_FILE",
    "MANIFEST_FILE",
    "ONNX_FILE",
    "PLAN_FILE",
    "VERSION",
    "Manifest",
    "manifest_beside",
    "read_manifest",
]
