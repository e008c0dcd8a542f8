"""What the runtimes that load ONNX share: a bundle's graph is parsed once, and tells inputs and outputs."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Self

from odm_deploy.bundle import Bundle, ModelKind
from odm_deploy.graphs.files import parse_onnx
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.onnx.tensors import graph_inputs, graph_outputs
from odm_deploy.runtimes.options import RuntimeOptions

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
        return cls._load(bundle.onnx_bytes, bundle.graph, options, str(bundle))

    @classmethod
    def open_bytes(cls, model: bytes, options: RuntimeOptions | None = None, *, label: str = "the model") -> Self:
        """Load a serialized ONNX model. `label` names it in error messages.

        Raises:
            InputError: these bytes are no ONNX model, or the runtime refuses the graph.
            MissingError: the runtime's package or its device is not on this machine.
            UsageError: the runtime cannot honour one of the options.
        """
        return cls._load(model, parse_onnx(model, label=label), options or RuntimeOptions(), label)

    @classmethod
    @abstractmethod
    def _load(cls, model: bytes, graph: onnx.ModelProto, options: RuntimeOptions, label: str) -> Self:
        """Load what `open_bytes` got, and what it parses to."""
