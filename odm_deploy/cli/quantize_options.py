"""The options of `quantize` that say which layers get how many bits, and how their grids are chosen."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

from odm_deploy.cli.options import completing, group, key_values
from odm_deploy.errors import UsageError
from odm_deploy.terminal import say

if TYPE_CHECKING:
    from odm_deploy.quantization.policy import QuantizationPolicy
    from odm_deploy.quantization.post_training import CalibrationSettings


def _old_spelling(_: click.Context, __: click.Parameter, method: str | None) -> str | None:
    if method is not None:
        say(f"--weights {method} is spelled --weight-scales {method} now")
    return method


PROFILES = ("paper", "deploy", "integer", "engine", "exact", "exact-integer", "fastest")
"""What `--profile` takes; the policies behind the names take long to import."""


def _profile(_: click.Context, __: click.Parameter, name: str) -> str:
    if name.lower() not in PROFILES:
        close = get_close_matches(name.lower(), PROFILES, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"no profile {name!r}", fix=f"{meant}known are {', '.join(PROFILES)}")
    return name.lower()


policy_options = group(
    click.option("--bits", default="8", show_default=True, metavar="WIDTH", help="Width of the body: 2 to 8, or w4a8."),
    click.option("--head", metavar="WIDTH", help="Width of the first convolution.  [default: float; exact: 8]"),
    click.option(
        "--body-end", metavar="WIDTH", help="Width of what follows the last block.  [default: 8; paper: float]"
    ),
    click.option(
        "--tail", metavar="WIDTH", help="Width of the upsampler and what follows.  [default: 8; paper: float]"
    ),
    click.option(
        "--layer",
        "layers",
        multiple=True,
        metavar="NAME=WIDTH",
        callback=key_values("--layer"),
        help="Width of a layer, by name or pattern (body.0.*=8); repeatable, later ones win.",
    ),
    click.option("--per-layer-weights", is_flag=True, help="One weight scale per layer instead of per output channel."),
    click.option(
        "--free", is_flag=True, help="Activation grids need not hold zero (Eq. 1 of the ODM paper as written)."
    ),
    click.option(
        "--symmetric",
        is_flag=True,
        help="Zero in the middle of 8-bit activation grids: engines need no padding kernels.",
    ),
    click.option(
        "--any-cpu",
        is_flag=True,
        help="Weights of 7 bits where inputs have 8, for CPUs without VNNI instructions: with 8, sums of products "
        "saturate there, and runtimes take slower ways.",
    ),
    click.option(
        "--profile",
        default="paper",
        show_default=True,
        metavar="NAME",
        callback=_profile,
        shell_complete=completing(*PROFILES),
        help="paper: the body; deploy: all but the first layer; integer: also what flows between layers; "
        "engine: the same for TensorRT, without what it would pad; exact: everything, dyadic scales, the same bits "
        "on every runtime; exact-integer: exact and integer; fastest: integer where that loses nothing to see, else "
        "deploy.",
    ),
)
"""What is quantized; `to_policies` reads them."""

range_options = group(
    click.option(
        "--method",
        type=click.Choice(["mse", "minmax", "percentile"]),
        help="How activation ranges are chosen.  [default: mse, or percentile where --percentile is given]",
    ),
    click.option("--percentile", type=click.FloatRange(50, 100, min_open=True), help="For --method percentile."),
    click.option(
        "--weight-scales",
        "weight_method",
        type=click.Choice(["mse", "max"]),
        default="mse",
        show_default=True,
        help="Weight scales by the smallest squared error, or by the largest weight.",
    ),
    click.option(
        "--weights",
        "old_weight_method",
        type=click.Choice(["mse", "max"]),
        hidden=True,
        callback=_old_spelling,
        help="Old spelling of --weight-scales.",
    ),
    click.option(
        "--exact-sums/--no-exact-sums",
        default=True,
        show_default=True,
        help="Scales with few significant bits where they make every sum exact on every runtime (up to 7 bits).",
    ),
    click.option(
        "--fit/--no-fit",
        default=True,
        show_default=True,
        help="Fit gains per channel, ranges, weight codes and biases to the output of each layer; without it, ranges "
        "fit its input, and weights are rounded one by one.",
    ),
)
"""How grids are chosen; `to_settings` reads them."""


def to_policies(options: Mapping[str, Any]) -> dict[str, QuantizationPolicy]:
    """What the options of `policy_options` ask for, by profile: the one that was named, or those to choose from.

    Raises:
        UsageError: widths and profiles that do not exist, or do not go together.
    """
    from odm_deploy.tuning.profile_choice import CHOICES, FASTEST

    if options["profile"] != FASTEST:
        return {options["profile"]: to_policy(options, options["profile"])}
    found: dict[str, QuantizationPolicy] = {}
    for name in CHOICES:
        # What not even the last one takes is an error; free grids are none of `integer`'s.
        with contextlib.nullcontext() if name == CHOICES[-1] else contextlib.suppress(UsageError):
            found[name] = to_policy(options, name)
    return found


def to_policy(options: Mapping[str, Any], profile: str) -> QuantizationPolicy:
    """The same of one profile."""
    from odm_deploy.quantization.policy import QuantizationPolicy

    return QuantizationPolicy.parse(
        profile,
        options["bits"],
        head=options["head"],
        body_end=options["body_end"],
        tail=options["tail"],
        overrides=options["layers"],
        per_channel=not options["per_layer_weights"],
        free=options["free"],
        symmetric=options["symmetric"],
        any_cpu=options["any_cpu"],
    )


def to_settings(options: Mapping[str, Any]) -> CalibrationSettings:
    """What the options of `range_options` ask for. Raises UsageError for those that contradict each other."""
    from odm_deploy.quantization.post_training import CalibrationSettings
    from odm_deploy.quantization.ranges import RangeMethod

    method, percentile = options["method"], options["percentile"]
    if percentile is not None and method not in (None, "percentile"):
        raise UsageError(f"--percentile says nothing about --method {method}", fix="drop one of the two")
    return CalibrationSettings(
        RangeMethod(method or ("mse" if percentile is None else "percentile")),
        percentile or 99.99,
        (options["old_weight_method"] or options["weight_method"]) == "mse",
        options["exact_sums"],
        equalize=options["fit"],
        output_ranges=options["fit"],
        adaptive_rounding=options["fit"],
        correct_bias=options["fit"],
    )
