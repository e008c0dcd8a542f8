"""`odm-deploy serve --model BUNDLE`: a small web page and an HTTP endpoint, for this machine unless told otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from odm_deploy.cli.options import open_engine, running_options
from odm_deploy.terminal import say

if TYPE_CHECKING:
    import socket


@click.command("serve")
@running_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others may reach 0.0.0.0.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--max-pixels", type=click.IntRange(1), default=4_000_000, show_default=True, help="Largest image taken.")
@click.option("--max-megabytes", type=click.IntRange(1), default=32, show_default=True, help="Largest upload taken.")
@click.option("--queue", type=click.IntRange(0), default=8, show_default=True, help="Images that may wait.")
def command(host: str, port: int, max_pixels: int, max_megabytes: int, queue: int, **running: Any) -> None:
    """Upscale images sent over HTTP, and serve a page to try it on. Ctrl-C ends it.

    POST an image to /upscale and get a PNG. There is no password: on an address that others reach, put a proxy that
    asks for one in front.
    """
    import importlib.util

    from odm_deploy.errors import MissingError
    from odm_deploy.installing import install_extra

    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingError(f"{' and '.join(missing)} not installed", why="they speak HTTP", fix=install_extra("serve"))
    import uvicorn

    from odm_deploy.serving.connections import BoundedConnection
    from odm_deploy.serving.http import LOOPBACK, Limits, http_app

    with open_engine(**running) as engine, _listening(host, port) as listener:
        limits = Limits(body_bytes=max_megabytes << 20, pixels=max_pixels, waiting=queue)
        app = http_app(engine, limits, local=host in LOOPBACK, name=running["bundle"].resolve().name)
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}"
        say(f"serving {running['bundle']} on {address} with {engine.describe()['runtime']}")
        if host not in LOOPBACK:
            say("anybody who reaches this address can use it")
        config = uvicorn.Config(app, log_level="warning", http=BoundedConnection, ws="none", lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        UsageError: no such address, or somebody listens there already.
    """
    import socket

    from odm_deploy.errors import UsageError

    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}", why=error.strerror or str(error), fix="choose another --host or --port"
        ) from error
