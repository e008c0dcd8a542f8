"""Hyper-parameters of a network: plain values, that a checkpoint holds or a public state dict shows."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from odm_deploy.documents import excerpt
from odm_deploy.errors import InputError

_TYPES: Mapping[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
_NAMES: Mapping[tuple[type, ...], str] = {
    (int,): "a whole number",
    (int, float): "a number",
    (bool,): "true or false",
    (str,): "a text",
}


@dataclass(frozen=True)
class NetworkConfig:
    """Base of all configs; subclasses add their sizes and say how public state dicts show them.

    Raises:
        InputError: a scale that the network does not come in, a size below 1, or a factor that is not finite.
    """

    title: ClassVar[str] = "network"
    """What the network's paper calls it."""
    scales: ClassVar[tuple[int, ...]] = ()
    """Upscaling factors it comes in; empty: any."""
    telling_keys: ClassVar[tuple[str, ...]] = ()
    """Keys by which its state dicts are known from others."""
    upsampler_keys: ClassVar[tuple[str, ...]] = ()
    """Weights of the convolutions before each pixel shuffle and of the one after the last; some scales lack some."""

    newer_keys: ClassVar[tuple[str, ...]] = ()
    """Settings that older programs do not know."""

    scale: int
    """Output pixels per input pixel along each axis."""

    def __post_init__(self) -> None:
        if self.scales and self.scale not in self.scales:
            known = f"{', '.join(map(str, self.scales[:-1]))} or {self.scales[-1]}"
            raise InputError(
                f"no such {self.title}", why=f"scale {self.scale}", fix=f"{self.title} upscales by {known}"
            )
        if any(getattr(self, field.name) < 1 for field in dataclasses.fields(self) if field.type == "int"):
            raise InputError(f"no such {self.title}", why=f"{self}")
        for field in dataclasses.fields(self):
            if field.type == "float" and not is_finite(getattr(self, field.name)):
                raise InputError(f"no such {self.title}", why=f"{field.name} {excerpt(getattr(self, field.name))}")

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], scale: int) -> Self:
        """Hyper-parameters read off the keys and shapes of a public state dict.

        Raises:
            InputError: the keys are not this network's, or belong to another scale.
        """
        if not cls.telling_keys or not set(cls.telling_keys) <= set(state):
            raise InputError(
                # EDSR, RDN and SRResNet are spelled out.
                f"not {'an' if cls.title[:2].isupper() else 'a'} {cls.title} state dict",
                why=f"no {', '.join(cls.telling_keys)} among its {len(state)} keys ({', '.join(list(state)[:3])} ..)",
                fix="name the right --network",
            )
        found = cls.scale_of(state)
        if found != scale:
            raise InputError(
                f"these are weights of {cls.title} x{found}",
                why=f"scale {scale} was asked for",
                fix=f"use --scale {found}, or other weights",
            )
        return cls(scale, **cls.sizes_of(state))

    @classmethod
    def scale_of(cls, state: Mapping[str, Tensor]) -> int:
        """The upscaling factor a state dict with this network's keys was made for: a shuffle trades channels for it."""
        weights = [state[key] for key in cls.upsampler_keys if key in state]
        traded = (before.shape[0] // after.shape[1] for before, after in itertools.pairwise(weights))
        return math.isqrt(math.prod(traded))

    @classmethod
    def sizes_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """All hyper-parameters but the scale that a state dict with this network's keys shows, by field name."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values; those of `newer_keys` only where they are not the default, so that older programs read it."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            key: value
            for key, value in dataclasses.asdict(self).items()
            if key not in self.newer_keys or value != defaults[key]
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The config `to_dict` or `dataclasses.asdict` described.

        Raises:
            InputError: unknown keys, missing keys or values of another type.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(plain) - set(fields))
        missing = sorted(
            name for name, field in fields.items() if name not in plain and field.default is dataclasses.MISSING
        )
        if unknown or missing:
            why = f"unknown keys {unknown}, missing keys {missing}"
            raise InputError(f"not a {cls.__name__}", why=why, fix=f"its keys are {', '.join(fields)}")
        for name, value in plain.items():
            expected = _TYPES.get(str(fields[name].type))
            if expected and (not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected)):
                why = f"{name} = {excerpt(repr(value))} is not {_NAMES[expected]}"
                raise InputError(f"not a {cls.__name__}", why=why)
        return cls(**plain)


def is_finite(number: float) -> bool:
    """Whether a float can hold it; whole numbers may be too large."""
    return abs(number) <= sys.float_info.max


def count_numbers(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the group of a regular expression takes at the start of a state dict's keys."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})
