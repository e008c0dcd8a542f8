"""`Bundle`: from a path that somebody named to graph, plan, manifest and golden outputs, each read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from odm_deploy.bundle.golden import Golden, read_golden
from odm_deploy.bundle.image_format import ImageFormat
from odm_deploy.bundle.manifest import CPU_ONNX_FILE, MANIFEST_FILE, ONNX_FILE, PLAN_FILE, Manifest, read_manifest
from odm_deploy.bundle.plan_header import PlanHeader
from odm_deploy.errors import InputError
from odm_deploy.files import file_sha256
from odm_deploy.graphs.files import read_bytes, read_onnx
from odm_deploy.kinds_of_files import kind_by_name, kind_of, why_no_file

if TYPE_CHECKING:
    import onnx

ModelKind = Literal["onnx", "plan"]
"""The two kinds of files in a bundle that runtimes load: graphs and `engine.plan`."""
Target = Literal["tensorrt", "cpu"]
"""A family of runtimes that has a dialect of its own."""

_HOW_TO_MAKE: dict[str, str] = {
    ONNX_FILE: "make a bundle with: odm-deploy export model.pt -o DIR",
    PLAN_FILE: "build one with: odm-deploy build BUNDLE",
}


class Bundle:
    """A bundle, or one of its files alone. Nothing is read before it is asked for, and nothing twice.

    What was read stays in memory as long as this object does, and is shared by all who ask: copy `graph` before
    changing it.

    >>> Bundle.open("model/").require_manifest().scale      # doctest: +SKIP
    """

    def __init__(self, path: Path, onnx_file: str = ONNX_FILE) -> None:
        """Callers want `Bundle.open`, which looks whether there is anything."""
        self.path = path
        """What was opened: a folder, a model.onnx or an engine.plan."""
        self.kind: ModelKind | None = None if path.is_dir() else "onnx" if path.suffix.lower() == ".onnx" else "plan"
        """Which of its files was named; None where the whole bundle was."""
        self._around = path if path.is_dir() else path.parent
        self._onnx_file = path.name if self.kind == "onnx" else onnx_file

    @classmethod
    def open(cls, path: Bundle | Path | str, wanted: str = "a bundle is wanted, or a file of one") -> Bundle:
        """Open a bundle folder, a model.onnx or an engine.plan; an open bundle is handed back as it is.

        `wanted` says what would do, for whoever named a file of another kind.

        Raises:
            InputError: there is no such file or folder, or what is there is neither.
        """
        if isinstance(path, Bundle):
            return path
        why = "" if Path(path).is_dir() else why_no_file(path)
        if why and kind_by_name(path):
            raise InputError(f"cannot load {path}", why=why, fix="check the path")
        if kind_by_name(path) == "a checkpoint" and not Path(path).is_dir():
            # What is wanted is another kind of thing. A bundle may have any name.
            raise InputError(
                f"cannot load {path}",
                why=f"{wanted}, and this is the name of a checkpoint",
                fix=f"make a bundle with: odm-deploy export {path} -o DIR, or from float weights with: odm-deploy "
                f"quantize {path} --images DIR --export DIR",
            )
        if why:
            raise InputError(
                f"cannot load {path}", why=why.replace("such file", "such file or folder"), fix=_HOW_TO_MAKE[ONNX_FILE]
            )
        kind = kind_of(path)
        if Path(path).is_file() and kind not in ("", "an ONNX file"):
            inside = (Path(path).parent / MANIFEST_FILE).is_file()
            raise InputError(
                f"cannot load {path}",
                why=f"{wanted}, and this is {kind}",
                fix=f"name its folder: {Path(path).parent}" if inside else _HOW_TO_MAKE[ONNX_FILE],
            )
        return cls(Path(path))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def folder(self) -> Path | None:
        """The bundle's folder; None for a file that lies in none."""
        return self._around if self.kind is None or (self._around / MANIFEST_FILE).is_file() else None

    def seen_by(self, runtime: str) -> Bundle:
        """The bundle as a runtime takes it: with the graph for CPUs where the manifest names the runtime there.

        A file that was named is taken as it is, and so is a bundle without a readable manifest.
        """
        if self.kind is not None or not (self._around / CPU_ONNX_FILE).is_file():
            return self
        try:
            stated = (self.manifest and self.manifest.cpu_onnx) or {}
        except InputError:
            return self
        return self._for_cpus if runtime in stated.get("runtimes", ()) else self

    @cached_property
    def _for_cpus(self) -> Bundle:
        return Bundle(self.path, CPU_ONNX_FILE)

    @property
    def onnx_path(self) -> Path | None:
        """The graph: the file that was named, or the one in the bundle or beside the plan; None where there is none."""
        return self.path if self.kind == "onnx" else _if_file(self._around / self._onnx_file)

    @property
    def plan_path(self) -> Path | None:
        """The engine; None where there is none, and for somebody who named a graph."""
        if self.kind == "onnx":
            return None
        return self.path if self.kind == "plan" else _if_file(self._around / PLAN_FILE)

    @cached_property
    def manifest(self) -> Manifest | None:
        """What the bundle says about itself; None where nothing does.

        Raises:
            InputError: a damaged manifest, or one of a newer version.
        """
        return read_manifest(self._around) if (self._around / MANIFEST_FILE).is_file() else None

    def require_manifest(self) -> Manifest:
        """The manifest.

        Raises:
            InputError: this is no bundle, or its manifest is damaged or of a newer version.
        """
        return self.manifest or read_manifest(self.path)

    @cached_property
    def engine_facts(self) -> Mapping[str, Any]:
        """The manifest's entry about the plan; empty where there is none, or no readable manifest.

        A damaged manifest is no reason not to run a good plan.
        """
        try:
            return (self.manifest and self.manifest.engine) or {}
        except InputError:
            return {}

    @cached_property
    def image_format(self) -> ImageFormat | None:
        """How both edges of the model take images, as the manifest says.

        None where no readable manifest tells: then every runtime goes by its own tensors (`ImageFormat.told_from`).
        """
        if self._is_another_file:
            return None
        try:
            return None if self.manifest is None else ImageFormat.stated_in(self.manifest)
        except InputError:
            return None

    @property
    def graph(self) -> onnx.ModelProto:
        """The ONNX graph with all its weights, whether or not they lie in files of their own.

        Raises:
            InputError: there is none, or it is unreadable or no ONNX model.
        """
        return self._onnx[0]

    @property
    def onnx_bytes(self) -> bytes:
        """The same, serialized: what runtimes load.

        Runtimes get bytes, never a path: OpenVINO maps the files it opens, and overwriting a mapped file changes the
        weights of a loaded model under its feet.

        Raises:
            InputError: as `graph`.
        """
        return self._onnx[1]

    @cached_property
    def _onnx(self) -> tuple[onnx.ModelProto, bytes]:
        return read_onnx(self._require(self.onnx_path, ONNX_FILE))

    @cached_property
    def is_changed(self) -> bool:
        """Whether the bundle's graph, as it lies there, is another file than its manifest describes.

        Raises:
            InputError: the manifest is damaged, or the file is unreadable.
        """
        file = _if_file(self._around / self._onnx_file)
        if self.manifest is None or file is None or self._is_another_file:
            return False
        stated = self.manifest.cpu_onnx if self._onnx_file == CPU_ONNX_FILE else self.manifest.onnx
        return file_sha256(file) != (stated or {}).get("sha256")

    @property
    def is_as_exported(self) -> bool:
        """Whether the graph is the file that a readable manifest describes."""
        try:
            known = self.manifest is not None and self.onnx_path is not None and not self._is_another_file
            return known and not self.is_changed
        except InputError:
            return False

    @cached_property
    def plan_bytes(self) -> bytes:
        """The serialized engine.

        Raises:
            InputError: there is none, or it is unreadable or empty.
        """
        return read_bytes(self._require(self.plan_path, PLAN_FILE))

    @cached_property
    def plan_header(self) -> PlanHeader:
        """Who built the engine; of the file, which may be large, only its first bytes are read.

        Raises:
            InputError: there is none, or it is unreadable, no TensorRT engine or only the beginning of one.
        """
        return PlanHeader.of_file(self._require(self.plan_path, PLAN_FILE))

    @cached_property
    def golden(self) -> Golden | None:
        """What the bundle's exact model computes on fixed images; None for other models.

        Raises:
            InputError: a damaged record, one of a newer version, or of other images than this program makes.
        """
        golden = None if self._is_another_file else read_golden(self._around)
        if golden is None or self._onnx_file != CPU_ONNX_FILE:
            return golden
        return replace(golden, graph=golden.cpu_graph or {})

    @property
    def _is_another_file(self) -> bool:
        """Whether somebody put the file into the bundle's folder: the bundle's records do not speak of it."""
        return self.kind is not None and self.path.name not in (ONNX_FILE, CPU_ONNX_FILE, PLAN_FILE)

    def _require(self, file: Path | None, name: str) -> Path:
        if file is not None:
            return file
        why = f"it holds no {name}" if self.kind is None else f"there is no {name} beside it"
        raise InputError(f"cannot load {self.path}", why=why, fix=_HOW_TO_MAKE[name])


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None
