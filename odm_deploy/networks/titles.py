"""What people call a network: its own name says nothing where it is one from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def network_title(name: str, config: Mapping[str, Any]) -> str:
    """The network's name, or what was named when it came from elsewhere: the class that builds it, or `ONNX`.

    An architecture of spandrel's whose class says nothing of it goes by spandrel's name (`UpCunet2x` is RealCUGAN).

    Args:
        name: in the registry, as `model.pt` and manifests have it.
        config: its hyper-parameters there, of which any may be missing or of another kind.
    """
    builder = config.get("builder")
    if name != "foreign" or not isinstance(builder, str) or not builder:
        return name
    module, _, path = builder.rpartition(":")
    kind = path.rpartition(".")[2]
    package, _, architecture = module.rpartition(".")
    if package == "spandrel.architectures" and architecture not in kind:
        return architecture
    return "ONNX" if kind == "OnnxNetwork" else kind
