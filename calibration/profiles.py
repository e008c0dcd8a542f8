"""Named quantization policies: what `--profile` and the width options make of the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from odm_deploy.errors import UsageError
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy


@dataclass(frozen=True)
class WidthOptions:
    """Widths and kinds of grids as the command line names them; text is what `LayerBits.parse` reads."""

    bits: str
    """Of the body, the region the papers quantize."""
    head: str = "float"
    """Of the first convolution."""
    body_end: str = "float"
    """Of the convolutions between body and upsampler."""
    tail: str = "float"
    """Of the upsampler and the last convolution."""
    overrides: Mapping[str, str] = field(default_factory=dict[str, str])
    """By layer name or pattern."""
    per_channel: bool = True
    """One weight scale per output channel."""
    free: bool = False
    """Activation grids need not hold zero."""


def _paper(options: WidthOptions) -> QuantizationPolicy:
    """The papers' region at one width, everything else float unless asked for."""
    body = LayerBits.parse(options.bits)
    if body is None:
        raise UsageError("--bits float quantizes nothing", fix="give a width such as 4, or w4a8")
    return QuantizationPolicy(
        body=body,
        body_end=LayerBits.parse(options.body_end),
        tail=LayerBits.parse(options.tail),
        head=LayerBits.parse(options.head),
        overrides={pattern: LayerBits.parse(text) for pattern, text in options.overrides.items()},
        per_channel=options.per_channel,
        free=options.free,
    )


_PROFILES: dict[str, Callable[[WidthOptions], QuantizationPolicy]] = {"paper": _paper}


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
