"""What the first bytes of an engine.plan say about it, before any TensorRT is loaded.

A plan runs only on the TensorRT, and the version, that built it, and fails elsewhere with words that help nobody
("Magic tag does not match"). Its first 28 bytes tell both: a tag of four letters ending in "trt", and at byte 24 the
builder's version (NVIDIA/TensorRT#3073). The tag of TensorRT for RTX is "vtrt", and byte 16 holds the plan's size. Byte
32 of its version 1.7 has a bit for each compute capability that the plan is for, as plans built for each of them show.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from odm_deploy.errors import InputError
from odm_deploy.graphs.files import reading
from odm_deploy.kinds_of_files import why_no_file
from odm_deploy.machine.builders import TENSORRT, TENSORRT_RTX
from odm_deploy.machine.capabilities import RTX_CAPABILITIES, sm_names

_HEADER = struct.Struct("<4sIQQ4B")
_RTX_TAG = b"vtrt"
_MASK_AT = 32
_MASKED_VERSIONS = ((1, 7),)
REBUILD = "build it for this machine with: odm-deploy build BUNDLE"
"""What to do about a plan that cannot run here."""


@dataclass(frozen=True)
class PlanHeader:
    """Who wrote a plan."""

    builder: str
    """`tensorrt` or `tensorrt_rtx`."""
    version: tuple[int, int, int, int]
    """The builder's version, for example (1, 7, 1, 116)."""
    targets: tuple[str, ...] | None = None
    """GPUs that the plan is for, such as SM86, where the header tells (TensorRT for RTX 1.7)."""

    def __str__(self) -> str:
        return f"{self.builder} {'.'.join(map(str, self.version))}"

    def require_builder(self, builder: str, *, label: str) -> None:
        """Raise InputError unless `builder` is the one that built this plan."""
        if self.builder != builder:
            raise InputError(
                f"{builder} cannot run {label}",
                why=f"it was built by {self}",
                fix=f"run it with --runtime {self.builder}, or {REBUILD}",
            )

    def require_version(self, version: str, *, label: str) -> None:
        """Raise InputError unless the installed `version`, such as "10.13.0.35", can load this plan.

        Between patch releases plans may load; TensorRT itself decides about those.
        """
        if version.split(".")[:2] != [str(number) for number in self.version[:2]]:
            raise InputError(f"{self.builder} {version} cannot run {label}", why=f"it was built by {self}", fix=REBUILD)

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """Of a plan in a file, of which only the beginning is read. Raises as `of_bytes`, and for unreadable files."""
        if why := why_no_file(path):
            raise InputError(f"cannot read {path}", why=why)
        with reading(path), path.open("rb") as stream:
            return cls._read(stream.read(_MASK_AT + 1), path.stat().st_size, str(path))

    @classmethod
    def of_bytes(cls, plan: bytes, *, label: str = "the plan") -> Self:
        """Of a serialized engine. `label` names it in error messages.

        Raises:
            InputError: these bytes are not a TensorRT engine, or only the beginning of one.
        """
        return cls._read(plan[: _MASK_AT + 1], len(plan), label)

    @classmethod
    def _read(cls, start: bytes, length: int, label: str) -> Self:
        if len(start) < _HEADER.size or start[1:4] != b"trt":
            raise InputError(
                f"{label} is not a TensorRT engine",
                why=f"its {length} bytes begin with {start[:4]!r}",
                fix="build one with: odm-deploy export model.pt -o DIR",
            )
        tag, _, _, size, *version = _HEADER.unpack_from(start)
        if tag == _RTX_TAG and size > length:
            raise InputError(f"{label} is cut short", why=f"it has {length} of {size} bytes", fix="copy it again")
        major, minor, patch, build = version
        if tag != _RTX_TAG:
            return cls(TENSORRT, (major, minor, patch, build))
        targets = None
        if (major, minor) in _MASKED_VERSIONS and len(start) > _MASK_AT:
            bits = enumerate(RTX_CAPABILITIES)
            targets = sm_names(tuple(capability for bit, capability in bits if start[_MASK_AT] & (1 << bit)))
        return cls(TENSORRT_RTX, (major, minor, patch, build), targets)
