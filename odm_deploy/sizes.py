"""Sizes of images on command lines: WIDTHxHEIGHT in pixels, as ffmpeg and video people write them."""

from __future__ import annotations

from typing import Any

import click

from odm_deploy.errors import UsageError


class SizeParameter(click.ParamType):  # pyright: ignore[reportMissingTypeArgument] - generic in new versions only
    """An option's type: `1280x720` becomes (width, height) = (1280, 720)."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Read what the user wrote.

        Raises:
            UsageError: it is no size.
        """
        if isinstance(value, tuple):
            width, height = value
            return width, height
        width, _, height = str(value).lower().partition("x")
        if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            raise UsageError(f"--size {value}", why="it is not WIDTHxHEIGHT in pixels", fix="write it like 1280x720")
        return int(width), int(height)


SIZE = SizeParameter()
