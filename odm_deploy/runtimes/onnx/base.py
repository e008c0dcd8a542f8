"""What the runtimes that load ONNX share: a bundle's graph is parsed once, and tells inputs and outputs."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from odm_deploy.bundle import Bundle, ModelKind
from odm_deploy.graphs.files import parse_onnx
from odm_deploy.graphs.growth import may_grow
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.onnx.trial import try_in_child
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensor_info import TensorInfo

if TYPE_CHECKING:
    import onnx


class GraphRuntime(Runtime):
    """A runtime that loads model.onnx."""

    model_kind: ClassVar[ModelKind] = "onnx"

    def __init__(self, graph: onnx.ModelProto) -> None:
        super().__init__()
        self.inputs = graph_inputs(graph)
        self.outputs = graph_outputs(graph)

    @classmethod
    def _open_bundle(cls, bundle: Bundle, options: RuntimeOptions) -> Self:
        bundle = bundle.seen_by(cls.name)
        if not bundle.is_as_exported or may_grow(bundle.graph):
            try_in_child(cls.name, bundle.onnx_bytes, str(bundle))
        return cls._load(bundle.onnx_bytes, bundle.graph, options, str(bundle))

    @classmethod
    def _load_bytes(cls, model: bytes, options: RuntimeOptions, label: str) -> Self:
        return cls._load(model, parse_onnx(model, label=label), options, label)

    @classmethod
    @abstractmethod
    def _load(cls, model: bytes, graph: onnx.ModelProto, options: RuntimeOptions, label: str) -> Self:
        """Load a serialized model, and what it parses to."""


def graph_inputs(model: onnx.ModelProto) -> tuple[TensorInfo, ...]:
    """What a caller has to feed: the graph's inputs without those that an initializer already fills."""
    filled = {tensor.name for tensor in model.graph.initializer}
    return tuple(_info(value) for value in model.graph.input if value.name not in filled)


def graph_outputs(model: onnx.ModelProto) -> tuple[TensorInfo, ...]:
    """What a run returns, in the graph's order."""
    return tuple(map(_info, model.graph.output))


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
    return TensorInfo(value.name, np.dtype(tensor_dtype_to_np_dtype(tensor.elem_type)), shape)
