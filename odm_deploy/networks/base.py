"""What every super-resolution network here has in common.

A network maps float32 [N, 3, H, W] RGB in 0..255 to float32 [N, 3, scale*H, scale*W] RGB in 0..255, unclamped. One
whose public weights expect another range or a mean shift does that inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import ClassVar

from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.networks.config import NetworkConfig
from odm_deploy.networks.titles import network_title

StateDict = dict[str, Tensor]


class Region(Enum):
    """Where in a network a layer sits; quantization policies speak of regions."""

    HEAD = "head"
    """Shallow feature extraction: the first convolution, reading the image."""
    BODY = "body"
    """The repeated blocks; what the papers quantize."""
    BODY_END = "body_end"
    """Convolutions between the first one and the upsampler that are in no block."""
    TAIL = "tail"
    """The upsampler and the reconstruction convolution."""


class SuperResolutionNetwork(nn.Module):
    """Base of all networks: an `nn.Module` that knows its config and the region of each of its layers."""

    name: ClassVar[str]
    """Name in the registry, and on the command line."""
    regions: ClassVar[Mapping[str, Region]] = {}
    """By the first part of a layer's dotted name."""
    is_foreign: ClassVar[bool] = False
    """Whether its `forward` is somebody else's code, which may raise anything."""
    config: NetworkConfig

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def title(self) -> str:
        """What people call it."""
        return network_title(self.name, self.config.to_dict())

    @property
    def scale(self) -> int:
        """Output pixels per input pixel along each axis."""
        return self.config.scale

    def round_float_edges(self) -> None:
        """Round the float layers between image and body so that their sums on 8-bit pixels are exact, in place.

        See `quantization.exact.sums`. Networks that cannot promise it leave their weights alone.
        """

    def make_exact(self) -> None:
        """Rewrite, in place, what no quantized layer computes so that integers can (the `exact` profile).

        Constants move onto dyadic grids and factors into weights; the function changes by no more than that.

        Raises:
            InputError: the network computes something that rounds in floating point whatever its constants.
        """
        raise InputError(
            f"{self.title} cannot be exact",
            why="it computes more than convolutions, sums and (P)ReLU, and that rounds in floating point",
            fix="use --profile deploy; edsr, rdn, srresnet and Compact can be exact",
        )

    def align_output(self) -> None:
        """Rewrite, in place, what follows the last layer so that `output_grid` holds every level of an 8-bit image."""

    def align_input(self) -> Grid | None:
        """Rewrite, in place, what precedes the first layer so that this reads 8-bit images without loss.

        Returns:
            The grid on which it does; None where this is not known, and nothing was changed.
        """
        return None

    @property
    def output_grid(self) -> Grid | None:
        """The grid on which the last layer's output holds all 256 levels of the image, after `align_output`.

        Rounding to it is what writing an 8-bit image does anyway. None: there is no such grid.
        """
        return None

    @property
    def pixel_grid(self) -> Grid:
        """The grid on which the first convolution of an exact network reads 8-bit images without loss."""
        return Grid(1.0, 0, 8)

    def region_of(self, layer: str) -> Region:
        """The region of the layer with this dotted name.

        Raises:
            InputError: no such layer.
        """
        part = layer.partition(".")[0]
        if part not in self.regions:
            raise InputError(f"{type(self).__name__} has no layer {layer}")
        return self.regions[part]

    def can_quantize(self, layer: str) -> bool:
        """Whether the Conv2d or Linear with this dotted name may be quantized."""
        return True

    def own_state(self, state: StateDict) -> StateDict:
        """A public state dict in this network's own keys: constants dropped, batch norms folded, where it has any."""
        return state
