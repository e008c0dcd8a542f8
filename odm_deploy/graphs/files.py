"""Finding and reading a model file: from a bundle directory, a model.onnx or an engine.plan to trusted bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from odm_deploy.errors import InputError
from odm_deploy.manifest import ONNX_FILE, PLAN_FILE

if TYPE_CHECKING:
    import onnx

ModelKind = Literal["onnx", "plan"]

_BUNDLE_FILE: dict[ModelKind, str] = {"onnx": ONNX_FILE, "plan": PLAN_FILE}
_HOW_TO_MAKE: dict[ModelKind, str] = {
    "onnx": "make a bundle with: odm-deploy export model.pt -o DIR",
    "plan": "install a builder (pip install 'odm-deploy[rtx]') and run: odm-deploy build BUNDLE",
}


def locate_model(model: Path | str, kind: ModelKind) -> Path:
    """The file of `kind` that `model` means: itself, or the one inside when it is a bundle directory.

    Raises:
        InputError: there is no such file.
    """
    path = Path(model)
    if path.is_dir():
        inside = path / _BUNDLE_FILE[kind]
        if not inside.is_file():
            raise InputError(f"cannot load {path}", why=f"it holds no {inside.name}", fix=_HOW_TO_MAKE[kind])
        return inside
    if not path.is_file():
        raise InputError(f"cannot load {path}", why="there is no such file")
    return path


def guess_kind(model: Path | str) -> ModelKind | None:
    """The kind of a single file by its suffix; None for a directory, which may hold both."""
    path = Path(model)
    if path.is_dir():
        return None
    return "onnx" if path.suffix.lower() == ".onnx" else "plan"


def read_model(model: Path | str, kind: ModelKind) -> bytes:
    """The bytes of a model file, read whole.

    Runtimes get bytes, never a path: OpenVINO maps the files it opens, and overwriting a mapped file changes the
    weights of a loaded model under its feet. ONNX files are checked to be ONNX, and their external data is embedded.

    Raises:
        InputError: the file is missing, unreadable, empty, or not an ONNX model although it has to be one.
    """
    path = locate_model(model, kind)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}", why=str(error.strerror or error)) from error
    if not data:
        raise InputError(f"cannot load {path}", why="the file is empty")
    if kind == "plan":
        return data
    proto = parse_onnx(data, label=str(path))
    return _with_data_embedded(proto, path) or data


def parse_onnx(data: bytes, *, label: str = "the model") -> onnx.ModelProto:
    """Parse a serialized ONNX model, without its external data. `label` names it in error messages.

    Raises:
        InputError: these bytes are not an ONNX model with a graph.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise InputError(
            f"{label} is not an ONNX model", why=f"its {len(data)} bytes do not parse as one (cut short?)"
        ) from error
    # protobuf accepts almost any short text as a message of unknown fields, so parsing alone proves nothing.
    if proto.ir_version == 0 or not proto.graph.node:
        raise InputError(f"{label} is not an ONNX model", why=f"its {len(data)} bytes hold no graph")
    return proto


def _with_data_embedded(proto: onnx.ModelProto, path: Path) -> bytes | None:
    """`proto` serialized with its external data inside, or None when it has none."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    if not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        return None
    try:
        load_external_data_for_model(proto, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"cannot load {path}", why=f"its external data cannot be read: {error}") from error
    return proto.SerializeToString()
