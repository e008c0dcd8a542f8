"""What a real driver tells about its GPUs, with neither torch nor TensorRT."""

from __future__ import annotations

import pytest

from odm_deploy.bench.gpu_watch import GpuSensors, watch_gpu
from odm_deploy.machine.gpus import find_gpus
from odm_deploy.runtimes.tensorrt.cuda import Cuda

pynvml = pytest.importorskip("pynvml")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not find_gpus(), reason="no NVIDIA GPU that the driver can use"),
]


def test_every_gpu_that_cuda_sees_has_sensors_of_its_own() -> None:
    """A real driver is needed: whether CUDA and NVML spell a UUID alike is theirs to decide."""
    pynvml.nvmlInit()
    for gpu in find_gpus():
        # MIG parts have names of their own, beginning with that of the card.
        assert gpu.name.startswith(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)))
        GpuSensors(gpu).sample()


def test_memory_of_a_model_is_without_the_cuda_context() -> None:
    """How much a CUDA context takes, only a driver knows."""
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    cuda = Cuda.load()
    with watch_gpu() as (watch, note):
        if watch is None:
            pytest.skip(note)
        pointer = cuda.allocate(256 << 20)
        watch.model_is_ready()
        found = watch.finish().memory_mib
        cuda.free(pointer)
    # Other processes may have taken or freed some meanwhile.
    assert found is None or 200 < found < 400
