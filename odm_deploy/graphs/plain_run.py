"""Running a graph in ONNX Runtime exactly as it is written: node by node, nothing fused, any tensor looked at."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from odm_deploy.errors import InputError, MissingError
from odm_deploy.installing import install_extra

Arrays = dict[str, NDArray[Any]]

_LOG_NOTHING = 4
_WITHOUT_NUMPY = ("tensor(int4)", "tensor(uint4)", "tensor(int2)", "tensor(uint2)")
"""Types of codes that have none in numpy."""


def run_plainly(model: ModelProto, inputs: Arrays, outputs: Iterable[str]) -> Arrays:
    """The tensors `outputs` of a graph, by name.

    Args:
        model: the graph; it is not changed.
        inputs: its inputs by name.
        outputs: tensors of the main graph, computed or given; codes of less than 8 bits come as int8.

    Raises:
        InputError: ONNX Runtime does not take the graph, or not on these inputs.
        MissingError: ONNX Runtime is not installed.
    """
    return PlainRun(model, outputs)(inputs)


class PlainRun:
    """A graph loaded once for several runs. Arguments and errors as those of `run_plainly`."""

    def __init__(self, model: ModelProto, outputs: Iterable[str]) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise MissingError("onnxruntime is not installed", fix=install_extra("cpu"))
        import onnxruntime as ort

        self._names = list(dict.fromkeys(outputs))
        copy = ModelProto()
        copy.CopyFrom(model)
        del copy.graph.output[:]
        copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in self._names)
        settings = ort.SessionOptions()
        settings.log_severity_level = _LOG_NOTHING
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.add_session_config_entry("session.disable_quant_qdq", "1")

        def load() -> ort.InferenceSession:
            return ort.InferenceSession(copy.SerializeToString(), settings, providers=["CPUExecutionProvider"])

        try:
            self._session = load()
            if any(value.type in _WITHOUT_NUMPY for value in self._session.get_outputs()):
                _widen(copy, [value.type in _WITHOUT_NUMPY for value in self._session.get_outputs()])
                self._session = load()
        except Exception as error:  # its exception types share no base but Exception
            raise InputError("ONNX Runtime cannot load this graph", why=_one_line(error)) from error

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run it."""
        try:
            results: Any = self._session.run(None, inputs)
        except Exception as error:
            raise InputError("ONNX Runtime cannot run this graph", why=_one_line(error)) from error
        return dict(zip(self._names, results, strict=True))


def _widen(model: ModelProto, are_narrow: list[bool]) -> None:
    """Have outputs of a graph given as int8, in place."""
    for output, is_narrow in zip(model.graph.output, are_narrow, strict=True):
        if is_narrow:
            cast = helper.make_node("Cast", [output.name], [f"{output.name}.int8"], to=TensorProto.INT8)
            model.graph.node.append(cast)
            output.name = cast.output[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).removeprefix("[ONNXRuntimeError] : ").split())[:300]
