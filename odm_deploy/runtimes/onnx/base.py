"""What the runtimes that load ONNX share: a bundle's graph is parsed once, and tells inputs and outputs."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from odm_deploy.bundle import Bundle, ModelKind
from odm_deploy.errors import InputError
from odm_deploy.graphs.files import parse_onnx
from odm_deploy.graphs.growth import may_grow
from odm_deploy.graphs.sides import divisor_of_sides, takes_multiples
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.onnx.trial import try_in_child
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensor_info import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from odm_deploy.runtimes.tensor_info import Array


class GraphRuntime(Runtime):
    """A runtime that loads model.onnx."""

    model_kind: ClassVar[ModelKind] = "onnx"

    def __init__(self, graph: onnx.ModelProto) -> None:
        super().__init__()
        self.inputs = graph_inputs(graph)
        self.outputs = graph_outputs(graph)
        self._divisor: int | None = None

    def _cannot_run(self, feeds: Mapping[str, Array], title: str, why: str) -> InputError:
        """That the runtime called `title` failed on these feeds, with what it says, and the sizes of images it takes.

        Somebody else's network may need sides that are multiples of a number, and the runtime names a node then.
        """
        shapes = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in feeds.items())
        plain = InputError(f"{title} cannot run the model on {shapes}", why=why)
        images = list(feeds.values())
        if "alloc" in why or len(self.inputs) != 1 or images[0].ndim != 4:
            return plain
        rows = 1 if self.inputs[0].images.layout == "nhwc" else 2
        height, width = images[0].shape[rows : rows + 2]
        divisor = self._divisor_of_sides(images[0], rows)
        if not divisor or not (height % divisor or width % divisor):
            return plain
        return InputError(
            f"the network does not run on images of {width}x{height} pixels",
            why=f"{title} says: {why.rstrip('.')}",
            fix=f"{takes_multiples(divisor, height, width)}, "
            "or pad in the network's code to what it needs, and quantize and export it again",
        )

    def _divisor_of_sides(self, images: Array, rows: int) -> int:
        """The smallest number whose multiples a network takes as sides of images; 0: none that is known."""
        if self._divisor is None:
            # What fails meanwhile does not ask for it again.
            self._divisor = 0

            def takes(height: int, width: int) -> bool:
                shape = list(images.shape)
                shape[rows : rows + 2] = height, width
                try:
                    self._execute({self.inputs[0].name: np.zeros(shape, images.dtype)})
                except InputError:
                    return False
                return True

            self._divisor = divisor_of_sides(takes)
        return self._divisor

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
