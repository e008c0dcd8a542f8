"""What every super-resolution network here has in common.

A network maps float32 [N, 3, H, W] RGB in 0..255 to float32 [N, 3, scale*H, scale*W] RGB in 0..255, unclamped. One
whose public weights expect another range or a mean shift does that inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid

StateDict = dict[str, Tensor]


class Region(Enum):
    """Where in a network a layer sits; quantization policies speak of regions."""

    HEAD = "head"
    """Shallow feature extraction: the first convolution, reading the image."""
    BODY = "body"
    """The repeated blocks; what the papers quantize."""
    BODY_END = "body_end"
    """Convolutions between the last block and the upsampler."""
    TAIL = "tail"
    """The upsampler and the reconstruction convolution."""


@dataclass(frozen=True)
class NetworkConfig:
    """Hyper-parameters of a network; subclasses add theirs. Plain values, so that a checkpoint can hold them."""

    scale: int
    """Output pixels per input pixel along each axis."""

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], scale: int) -> Self:
        """Hyper-parameters read off the keys and shapes of a public state dict.

        Raises:
            InputError: the keys are not this network's.
        """
        raise InputError(f"{cls.__name__} cannot be read off a state dict")

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The config `dataclasses.asdict` described.

        Raises:
            InputError: unknown keys, missing keys or values of another type.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(plain) - set(fields))
        missing = sorted(
            name for name, field in fields.items() if name not in plain and field.default is dataclasses.MISSING
        )
        if unknown or missing:
            raise InputError(f"not a {cls.__name__}", why=f"unknown keys {unknown}, missing keys {missing}")
        for name, value in plain.items():
            expected = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}.get(
                str(fields[name].type)
            )
            if expected and (not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected)):
                raise InputError(f"not a {cls.__name__}", why=f"{name} = {value!r} is not a {fields[name].type}")
        return cls(**plain)


class SuperResolutionNetwork(nn.Module):
    """Base of all networks: an `nn.Module` that knows its config and the region of each of its layers."""

    name: ClassVar[str]
    """Name in the registry, and on the command line."""
    config: NetworkConfig

    @property
    def scale(self) -> int:
        """Output pixels per input pixel along each axis."""
        return self.config.scale

    def round_float_edges(self) -> None:
        """Round the float layers between image and body so that their sums on 8-bit pixels are exact, in place.

        See `quantization.exact_sums`. Networks that cannot promise it leave their weights alone.
        """

    def make_exact(self) -> None:
        """Rewrite, in place, what no quantized layer computes so that integers can (the `exact` profile).

        Constants move onto dyadic grids and factors into weights; the function changes by no more than that.

        Raises:
            InputError: the network computes something that rounds in floating point whatever its constants.
        """
        raise InputError(
            f"{self.name} cannot be exact",
            why="it computes more than convolutions, sums and (P)ReLU, and that rounds in floating point",
            fix="use --profile paper; edsr, rdn and srresnet can be exact",
        )

    @property
    def pixel_grid(self) -> Grid:
        """The grid on which the first convolution of an exact network reads 8-bit images without loss."""
        return Grid(1.0, 0, 8)

    def region_of(self, layer: str) -> Region:
        """The region of the layer with this dotted name."""
        raise InputError(f"{type(self).__name__} has no layer {layer}")

    def can_quantize(self, layer: str) -> bool:
        """Whether the Conv2d or Linear with this dotted name may be quantized."""
        return True

    def own_state(self, state: StateDict) -> StateDict:
        """A public state dict in this network's own keys: constants dropped, batch norms folded, where it has any."""
        return state
