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
from pathlib import Path
from typing import Any

from odm_deploy.bundle import Bundle
from odm_deploy.bundle.manifest import MANIFEST_FILE, ONNX_FILE, PLAN_FILE
from odm_deploy.errors import InputError, UsageError
from odm_deploy.files import atomic_directory
from odm_deploy.graphs.input_shapes import InputShapes, parse_shapes
from odm_deploy.machine.builders import TENSORRT
from odm_deploy.runtimes.onnx.base import graph_inputs, graph_outputs
from odm_deploy.runtimes.tensor_info import TensorInfo
from odm_deploy.serving.pbtxt import Enum, to_pbtxt

_VERSION_FOLDER = "1"
_MAX_QUEUE_DELAY_US = 1000
"""How long a request may wait for others to share a batch with: little beside the time a frame takes."""
_GPU_INSTANCES = 2
"""Two execution contexts: the copies of one request overlap with the computation of another."""
_BACKENDS = {
    "onnxruntime": ("onnx", ONNX_FILE, "model.onnx"),
    "tensorrt": ("tensorrt", PLAN_FILE, "model.plan"),
}
"""On the CPU, and on all GPUs: ending of the model's name, the bundle's file, and what Triton calls it."""
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}


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
    inputs, outputs = graph_inputs(opened.graph), graph_outputs(opened.graph)
    for info in (*inputs, *outputs):
        if len(info.shape) != 4 or info.shape[0] is not None or str(info.dtype) not in _TYPES:
            raise InputError(
                f"Triton cannot serve {opened}",
                why=f"its tensor {info.name!r} is {info.dtype} {info.shape}, no batch of images of any length",
            )

    def write(backend: str, sizes: InputShapes) -> Path:
        short, file, target = _BACKENDS[backend]
        model = Path(repository) / f"{prefix}_{short}"
        with atomic_directory(model) as folder:
            (folder / _VERSION_FOLDER).mkdir()
            shutil.copyfile(source / file, folder / _VERSION_FOLDER / target)
            # Triton ignores it; people, and the check before this folder is replaced, do not.
            shutil.copyfile(source / MANIFEST_FILE, folder / MANIFEST_FILE)
            config = _model_config(model.name, backend, sizes, inputs, outputs)
            (folder / "config.pbtxt").write_text(to_pbtxt(config), encoding="utf-8")
        return model

    written = [write("onnxruntime", shapes)]
    engine = manifest.engine
    if engine is not None and engine["flavour"] == TENSORRT:
        return [*written, write("tensorrt", parse_shapes(str(engine["profile"])))]
    left_out = "the bundle has no engine.plan"
    if engine is not None:
        left_out = (
            f"its plan was built by {engine['flavour']}, which Triton does not load; build with --builder tensorrt"
        )
    if say is not None:
        say(f"no {prefix}_tensorrt: {left_out}")
    return written


def _model_config(
    name: str, backend: str, shapes: InputShapes, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
) -> dict[str, Any]:
    """The ModelConfig of one model.

    Its tensors are as the graph itself declares them: the manifest could be of another file.
    """
    on_gpu = backend == "tensorrt"
    largest_batch, usual_batch = shapes.max[0], shapes.opt[0]
    config: dict[str, Any] = {
        "name": name,
        "backend": backend,
        "max_batch_size": largest_batch,
        "input": [_declare(info) for info in inputs],
        "output": [_declare(info) for info in outputs],
        "instance_group": [
            {"count": _GPU_INSTANCES if on_gpu else 1, "kind": Enum("KIND_GPU" if on_gpu else "KIND_CPU")}
        ],
    }
    if largest_batch > 1:
        config["dynamic_batching"] = {
            "preferred_batch_size": sorted({usual_batch, largest_batch} - {1}),
            "max_queue_delay_microseconds": _MAX_QUEUE_DELAY_US,
        }
    # Kernels are loaded, and on the CPU threads started, before the first client waits for them. On a CPU a frame of
    # usual size can take a minute, and any size starts the threads.
    warm_up = shapes.opt if on_gpu else (1, *shapes.min[1:])
    sizes = InputShapes(warm_up, warm_up, warm_up)
    samples = [
        {
            "key": info.name,
            "value": {
                "data_type": Enum(_TYPES[str(info.dtype)]),
                "dims": list(sizes.for_input(_open_shape(info), info.name)[0][1:]),
                "random_data": True,
            },
        }
        for info in inputs
    ]
    config["model_warmup"] = [{"name": "first frame", "batch_size": warm_up[0], "inputs": samples}]
    return config


def _declare(info: TensorInfo) -> dict[str, Any]:
    """A tensor without its batch axis."""
    return {"name": info.name, "data_type": Enum(_TYPES[str(info.dtype)]), "dims": list(_open_shape(info)[1:])}


def _open_shape(info: TensorInfo) -> tuple[int, ...]:
    """-1 where a dimension is open."""
    return tuple(-1 if size is None else size for size in info.shape)
