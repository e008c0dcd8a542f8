"""`quantize`: any network and some images in, a quantized model out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.imaging.pixels import to_batch
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.folding import copy_of
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.progress import Track, untracked
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.version import __version__

Image = Tensor | NDArray[np.uint8]


def quantize(
    network: nn.Module,
    policy: QuantizationPolicy | int,
    images: Iterable[Image],
    *,
    builder: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    input_range: float = 1.0,
    settings: CalibrationSettings | None = None,
    track: Track = untracked,
) -> QuantizedModel:
    """Quantize any network that enlarges RGB images, after training and without it.

    Finds the Conv2d and Linear layers, watches their inputs while the float network runs over the images, chooses a
    static grid for each and integer weights, and freezes them. The result computes like the network, in 0..255 at both
    ends; `save_model` writes it, `lower` turns it into ONNX, and every command takes the file.

        model = quantize(net, 8, images)
        save_model(model, "model.pt")       # then: odm-deploy export model.pt --trust my_pkg.net:Net

    Large networks take minutes. A `Track` shows how far it has come, as a bar or in lines on stderr:

        with progress("quantizing") as track:  # of odm_deploy.terminal
            model = quantize(net, 8, images, track=track)

    Args:
        network: one of this project's networks, or any module from float32 [N, 3, H, W] to
            [N, 3, scale*H, scale*W], RGB; left as it is.
        policy: what is quantized with how many bits; a number quantizes the body at that width. Of a network that is
            not this project's, the first layer to run is the head, those on enlarged features and the last one are
            the tail, all others the body.
        images: network inputs, float32 [N, 3, H, W] in 0..255 or uint8 [H, W, 3]; consumed one after the other. Where
            what layers read depends on the image's size, the result is good near the size of these.
        builder: where a network that is not this project's comes from, `package.module:Name`, so that it can be saved.
            None takes its class.
        arguments: keyword arguments of the builder, plain values. None takes `network.hyperparameters`, where it has
            them, else none.
        input_range: value of white in the images a network that is not this project's takes and gives: 1 or 255.
        settings: how ranges are chosen; None for the smallest squared error.
        track: shows progress over the images, if they have a length, and over the layers that are fitted to them.

    Raises:
        UsageError: the policy does not fit the network, or a width outside 2 to 8.
        InputError: the network does something else than enlarge RGB images, no image, or activations that are not
            finite.
    """
    if isinstance(policy, int):
        policy = QuantizationPolicy(body=LayerBits(policy, policy))
    if not isinstance(network, SuperResolutionNetwork):
        network = foreign_network(
            copy_of(network),
            builder=_home_of(network) if builder is None else builder,
            arguments=getattr(network, "hyperparameters", {}) if arguments is None else arguments,
            input_range=input_range,
        )
    metadata = {"method": "post-training", "odm_deploy": __version__}
    model, _ = calibrate(network, _tensors_of(images), policy, settings, metadata, track)
    return model


def _home_of(network: nn.Module) -> str:
    """Import path of a module's class; empty where it has none that another process could use."""
    kind = type(network)
    return "" if kind.__module__ == "__main__" or "<" in kind.__qualname__ else f"{kind.__module__}:{kind.__qualname__}"


def _tensors_of(images: Iterable[Image]) -> Iterable[Tensor]:
    """The images as tensors, with a length if they have one."""
    return _SizedTensors(images, len(images)) if isinstance(images, Sized) else _tensors(images)


class _SizedTensors:
    """`_tensors` of images that are known to be so many."""

    def __init__(self, images: Iterable[Image], count: int) -> None:
        self._images, self._count = images, count

    def __iter__(self) -> Iterator[Tensor]:
        return _tensors(self._images)

    def __len__(self) -> int:
        return self._count


def _tensors(images: Iterable[Image]) -> Generator[Tensor]:
    """Each image as float32 [N, 3, H, W] in 0..255."""
    for image in images:
        if isinstance(image, Tensor):
            tensor = image.float()
        else:
            array = np.asarray(image)
            if array.ndim != 3 or array.dtype != np.uint8:
                raise InputError("not an image", why=f"{array.dtype} {array.shape}", fix="give uint8 [H, W, 3]")
            tensor = torch.from_numpy(to_batch(array))
        if tensor.dim() != 4 or tensor.shape[1] != 3:
            raise InputError("not a batch of RGB images", why=f"its shape is {list(tensor.shape)}, not [N, 3, H, W]")
        yield tensor
