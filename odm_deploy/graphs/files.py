"""Reading a model file, to trusted bytes and graphs: every ONNX file comes in here."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from odm_deploy.errors import InputError
from odm_deploy.graphs.tensors import check_tensors, tensors_of
from odm_deploy.graphs.wellformed import check_graph
from odm_deploy.kinds_of_files import BEGINNING_BYTES, kind_by_beginning, why_no_file

if TYPE_CHECKING:
    import onnx

LARGEST_ONNX_BYTES = 2**31 - 1
"""Protocol buffers, which ONNX files are, end there."""


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Say in one line what keeps `path` from being read.

    Raises:
        InputError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}", why=error.strerror or str(error)) from error


def read_bytes(path: Path, *, limit: int | None = None) -> bytes:
    """A model file, whole.

    Raises:
        InputError: it is missing, unreadable, empty, no regular file (a pipe or a device may never end), or larger than
            `limit` bytes.
    """
    with reading(path):
        if why := why_no_file(path):
            raise InputError(f"cannot read {path}", why=why, fix="" if path.exists() else "check the path")
        size = path.stat().st_size
        if limit is not None and size > limit:
            raise InputError(f"cannot load {path}", why=f"{size} bytes; at most {limit} are read")
        data = path.read_bytes()
    if not data:
        raise InputError(f"cannot load {path}", why="the file is empty")
    return data


def read_onnx(path: Path) -> tuple[onnx.ModelProto, bytes]:
    """An ONNX file as a graph and serialized, both with its external data inside.

    Whoever gets the bytes does not know where the file lies, and would look for external data in the current folder.

    Raises:
        InputError: it is missing, unreadable, no ONNX model, or its external data is.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    data = read_bytes(path, limit=LARGEST_ONNX_BYTES)
    graph = parse_onnx(data, label=str(path))
    if not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors_of(graph)):
        return graph, data
    _check_external(graph, path)
    try:
        load_external_data_for_model(graph, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(
            f"cannot load {path}",
            why=f"its external data cannot be read: {str(error).rstrip('.')}",
            fix=f"put the files that its export wrote beside it into {path.parent}",
        ) from error
    check_tensors(graph, label=str(path))
    return graph, graph.SerializeToString()


def _check_external(graph: onnx.ModelProto, path: Path) -> None:
    """Refuse external data that is more than the files beside `path` hold: one byte may be of thousands of tensors.

    Files that are missing or not to be read are onnx's to name.

    Raises:
        InputError: it is, or too much for one model.
    """
    import onnx
    from onnx.external_data_helper import ExternalDataInfo

    sizes: dict[str, int] = {}
    wanted = 0
    for tensor in tensors_of(graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            with suppress(OSError, ValueError):
                info = ExternalDataInfo(tensor)
                size = sizes.setdefault(info.location, (path.parent / info.location).stat().st_size)
                # Without a length, it reaches to the end of its file.
                wanted += info.length or size - (info.offset or 0)
    held = min(sum(sizes.values()), LARGEST_ONNX_BYTES)
    if wanted > held:
        raise InputError(
            f"cannot load {path}",
            why=f"its tensors take {wanted} bytes of external data; {held} are there, or as many as one model may have",
        )


def parse_onnx(data: bytes, *, label: str = "the model") -> onnx.ModelProto:
    """Parse a serialized ONNX model, without its external data. `label` names it in error messages.

    Raises:
        InputError: these bytes are not an ONNX model with a graph, or a tensor, name or attribute in it is not what it
            has to be.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if kind := kind_by_beginning(data[:BEGINNING_BYTES]):
        raise InputError(f"{label} is not an ONNX model", why=f"it is {kind}", fix="download or copy the file itself")
    try:
        proto = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise InputError(
            f"{label} is not an ONNX model", why=f"its {len(data)} bytes do not parse as one (cut short?)"
        ) from error
    # protobuf accepts almost any short text as a message of unknown fields, so parsing alone proves nothing.
    if proto.ir_version == 0 or not proto.graph.node or not proto.opset_import:
        raise InputError(f"{label} is not an ONNX model", why=f"its {len(data)} bytes hold no graph")
    check_graph(proto, label=label)
    check_tensors(proto, label=label)
    return proto
