"""Named quantization policies: what `--profile` and the width options make of the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from odm_deploy.errors import UsageError
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy


@dataclass(frozen=True)
class WidthOptions:
    """Widths and kinds of grids as the command line names them; text is what `LayerBits.parse` reads."""

    bits: str
    """Of the body, the region the papers quantize."""
    head: str | None = None
    """Of the first convolution; None: the profile's own."""
    body_end: str | None = None
    """Of the convolutions between body and upsampler; None: the profile's own."""
    tail: str | None = None
    """Of the upsampler and the last convolution; None: the profile's own."""
    overrides: Mapping[str, str] = field(default_factory=dict[str, str])
    """By layer name or pattern."""
    per_channel: bool = True
    """One weight scale per output channel."""
    free: bool = False
    """Activation grids need not hold zero."""


def _paper(options: WidthOptions) -> QuantizationPolicy:
    """The papers' region at one width, everything else float unless asked for."""
    return _policy(options, rest="float")


def _exact(options: WidthOptions) -> QuantizationPolicy:
    """Everything quantized, the body as asked for and the rest to 8 bits, all scales dyadic.

    Raises:
        UsageError: a layer left in float, or free grids.
    """
    if options.free:
        raise UsageError("--free with --profile exact", why="a free grid's levels are no multiples of its scale")
    policy = _policy(options, rest="8")
    if None in (policy.head, policy.body_end, policy.tail, *policy.overrides.values()):
        raise UsageError("a float layer in --profile exact", why="float sums round", fix="give it a width of up to 8")
    return dataclasses.replace(policy, power_of_two=True)


def _policy(options: WidthOptions, rest: str) -> QuantizationPolicy:
    """The options as a policy, with the width `rest` where they name none."""
    body = LayerBits.parse(options.bits)
    if body is None:
        raise UsageError("--bits float quantizes nothing", fix="give a width such as 4, or w4a8")
    return QuantizationPolicy(
        body=body,
        body_end=LayerBits.parse(options.body_end or rest),
        tail=LayerBits.parse(options.tail or rest),
        head=LayerBits.parse(options.head or rest),
        overrides={pattern: LayerBits.parse(text) for pattern, text in options.overrides.items()},
        per_channel=options.per_channel,
        free=options.free,
    )


_PROFILES: dict[str, Callable[[WidthOptions], QuantizationPolicy]] = {"paper": _paper, "exact": _exact}


def profile_names() -> list[str]:
    """Names `--profile` takes."""
    return list(_PROFILES)


def policy_of(profile: str, options: WidthOptions) -> QuantizationPolicy:
    """The policy that a profile makes of the options.

    Raises:
        UsageError: no such profile, or a width that does not exist.
    """
    if profile not in _PROFILES:
        raise UsageError(f"no profile {profile!r}", fix=f"known are {', '.join(_PROFILES)}")
    return _PROFILES[profile](options)
