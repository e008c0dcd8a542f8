"""A bundle as models of NVIDIA's Triton Inference Server.

    REPOSITORY/NAME_onnx/       config.pbtxt  manifest.json  1/model.onnx    ONNX Runtime on the CPU, loads everywhere
    REPOSITORY/NAME_tensorrt/   config.pbtxt  manifest.json  1/model.plan    where the bundle has a plan of TensorRT

Triton loads plans of the data-centre TensorRT only, of exactly its own version: build inside the server's container.
Fields of config.pbtxt: message ModelConfig in model_config.proto of triton-inference-server/common.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odm_deploy.bundle import Bundle
from odm_deploy.bundle.manifest import MANIFEST_FILE, ONNX_FILE, PLAN_FILE
from odm_deploy.errors import InputError, UsageError
from odm_deploy.files import atomic_directory
from odm_deploy.graphs.input_shapes import InputShapes, Shape, parse_shapes
from odm_deploy.machine.builders import TENSORRT
from odm_deploy.runtimes.onnx.base import graph_inputs, graph_outputs
from odm_deploy.runtimes.tensor_info import TensorInfo
from odm_deploy.serving.pbtxt import Enum, to_pbtxt

_VERSION_FOLDER = "1"
_MAX_QUEUE_DELAY_US = 1000
"""How long a request may wait for others to share a batch with: little beside the time a frame takes."""
_GPU_INSTANCES = 2
"""Two execution contexts: the copies of one request overlap with the computation of another."""
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}


@dataclass(frozen=True)
class TritonTensor:
    """An input or output as config.pbtxt declares it."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    """Without the batch axis; -1 where open."""


def write_triton_models(
    bundle: Bundle | Path | str,
    repository: Path | str,
    shapes: InputShapes,
    *,
    name: str | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write a bundle into a Triton model repository, each model atomically; older versions of them are replaced.

    Args:
        bundle: what `odm-deploy export` wrote.
        repository: the model repository; made if missing, other models in it are left alone.
        shapes: image sizes; its largest batch becomes `max_batch_size`. The plan goes by the shapes it was built
            for instead.
        name: what clients call the model, without the ending `_onnx` or `_tensorrt`; None takes the bundle's name.
        say: takes a line about a model that is left out.

    Returns:
        The folders of the models written.

    Raises:
        InputError: there is no such bundle, or a folder of another kind is in the way.
        UsageError: `name` is none that Triton could serve in a URL.
    """
    opened = Bundle.open(bundle)
    manifest, source = opened.require_manifest(), opened.folder
    assert source is not None
    prefix = re.sub(r"[^A-Za-z0-9_.-]+", "_", source.resolve().name) if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", prefix):
        raise UsageError(f"no such model name: {prefix!r}", fix="use letters, digits, '_', '-' and '.'")
    inputs, outputs = _tensors(opened)
    written = [_write(source, Path(repository), f"{prefix}_onnx", "onnxruntime", shapes, inputs, outputs)]
    engine = manifest.engine
    if engine is None:
        left_out = "the bundle has no engine.plan"
    elif engine["flavour"] != TENSORRT:
        left_out = (
            f"its plan was built by {engine['flavour']}, which Triton does not load; build with --builder tensorrt"
        )
    else:
        built_for = parse_shapes(str(engine["profile"]))
        written.append(_write(source, Path(repository), f"{prefix}_tensorrt", "tensorrt", built_for, inputs, outputs))
        return written
    if say is not None:
        say(f"no {prefix}_tensorrt: {left_out}")
    return written


def _write(
    bundle: Path,
    repository: Path,
    name: str,
    backend: str,
    shapes: InputShapes,
    inputs: Sequence[TritonTensor],
    outputs: Sequence[TritonTensor],
) -> Path:
    source, target = (ONNX_FILE, "model.onnx") if backend == "onnxruntime" else (PLAN_FILE, "model.plan")
    config = triton_config(name, backend, shapes, inputs, outputs)
    with atomic_directory(repository / name) as folder:
        (folder / _VERSION_FOLDER).mkdir()
        shutil.copyfile(bundle / source, folder / _VERSION_FOLDER / target)
        # Triton ignores it; people, and the check before this folder is replaced, do not.
        shutil.copyfile(bundle / MANIFEST_FILE, folder / MANIFEST_FILE)
        (folder / "config.pbtxt").write_text(to_pbtxt(config), encoding="utf-8")
    return repository / name


def triton_config(
    name: str,
    backend: str,
    shapes: InputShapes,
    inputs: Sequence[TritonTensor],
    outputs: Sequence[TritonTensor],
) -> dict[str, Any]:
    """The ModelConfig of one model.

    Args:
        name: the model's name, and its folder's.
        backend: `onnxruntime` (on the CPU) or `tensorrt` (on all GPUs).
        shapes: sizes the model takes.
        inputs: the network's image.
        outputs: the upscaled image.
    """
    largest_batch, usual_batch = shapes.max[0], shapes.opt[0]
    # On a CPU a frame of usual size can take a minute, and any size starts the threads.
    warm_up = shapes.opt if backend == "tensorrt" else (1, *shapes.min[1:])
    config: dict[str, Any] = {
        "name": name,
        "backend": backend,
        "max_batch_size": largest_batch,
        "input": [_declare(tensor) for tensor in inputs],
        "output": [_declare(tensor) for tensor in outputs],
    }
    if backend == "tensorrt":
        config["instance_group"] = [{"count": _GPU_INSTANCES, "kind": Enum("KIND_GPU")}]
    else:
        config["instance_group"] = [{"count": 1, "kind": Enum("KIND_CPU")}]
    if largest_batch > 1:
        config["dynamic_batching"] = {
            "preferred_batch_size": sorted({usual_batch, largest_batch} - {1}),
            "max_queue_delay_microseconds": _MAX_QUEUE_DELAY_US,
        }
    # Kernels are loaded, and on the CPU threads started, before the first client waits for them.
    config["model_warmup"] = [
        {
            "name": "first frame",
            "batch_size": warm_up[0],
            "inputs": [
                {
                    "key": tensor.name,
                    "value": {
                        "data_type": Enum(tensor.data_type),
                        "dims": _dims(tensor, warm_up),
                        "random_data": True,
                    },
                }
                for tensor in inputs
            ],
        }
    ]
    return config


def _declare(tensor: TritonTensor) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": Enum(tensor.data_type), "dims": list(tensor.dims)}


def _dims(tensor: TritonTensor, shape: Shape) -> list[int]:
    """`shape` [N, C, H, W] in the tensor's own layout, without the batch axis; fixed dimensions win."""
    shapes = InputShapes(shape, shape, shape)
    return list(shapes.for_input((-1, *tensor.dims), tensor.name)[0][1:])


def _tensors(bundle: Bundle) -> tuple[list[TritonTensor], list[TritonTensor]]:
    """Inputs and outputs as the graph itself declares them: the manifest could be of another file."""
    inputs = [_tensor(info, bundle) for info in graph_inputs(bundle.graph)]
    return inputs, [_tensor(info, bundle) for info in graph_outputs(bundle.graph)]


def _tensor(info: TensorInfo, bundle: Bundle) -> TritonTensor:
    if len(info.shape) != 4 or info.shape[0] is not None or str(info.dtype) not in _TYPES:
        raise InputError(
            f"Triton cannot serve {bundle}",
            why=f"its tensor {info.name!r} is {info.dtype} {info.shape}, no batch of images of any length",
        )
    dims = tuple(-1 if size is None else size for size in info.shape[1:])
    return TritonTensor(info.name, _TYPES[str(info.dtype)], dims)
