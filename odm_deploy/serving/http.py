"""The HTTP face of a bundle: POST an image, get a PNG; a page to try it on.

    GET  /          the page (/page.css, /page.js)
    POST /upscale   the bytes of an image -> image/png, `Server-Timing` says where the time went
    POST /bicubic   the same by interpolation, to compare with
    GET  /health    {"model", "network", "scale", "runtime": {...}, limits, "waiting", "tiles_done", "tiles"}

Errors are one line of JSON, {"error": "..."}: 400 no usable image, 403 another site's page, 408 too slow an upload,
413 too large, 503 too many waiting. One image is computed at a time; a few may wait.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from odm_deploy.engine import Engine
from odm_deploy.errors import OdmError
from odm_deploy.imaging.image import Image
from odm_deploy.imaging.reading import TooLargeError
from odm_deploy.progress import T
from odm_deploy.serving.answer import answer, interpolate

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Names under which nobody but this machine reaches a server."""

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z_.-]+))(?::[0-9]{1,5})?")
"""A Host header: an IPv6 address in brackets, or a name; perhaps with a port."""

_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """What the server lets itself in for."""

    body_bytes: int = 32 << 20
    """Largest request."""
    pixels: int = 4_000_000
    """Largest image, width times height."""
    waiting: int = 8
    """Requests that may wait while one is computed; more are sent away with 503."""
    upload_s: float = 30.0
    """Seconds an upload may take: whoever sends slower would keep a place from others."""


def http_app(engine: Engine, limits: Limits, *, local: bool = True, name: str = "odm-deploy") -> Starlette:
    """The ASGI application over an open bundle, which goes by `name`.

    With `local`, only requests made to a loopback name are answered. A page of another site whose name was made to
    point at this machine (DNS rebinding) then gets nothing.
    """
    return _Server(engine, limits, local=local, name=name).app


class _Server:
    def __init__(self, engine: Engine, limits: Limits, *, local: bool, name: str) -> None:
        self._engine, self._limits, self._local = engine, limits, local
        self._facts: dict[str, Any] = {
            "model": name,
            "network": "" if engine.manifest is None else engine.manifest.network_title,
            "scale": engine.scale,
            "runtime": engine.describe(),
            "max_pixels": limits.pixels,
            "max_bytes": limits.body_bytes,
        }
        self._tiles_done, self._tiles = 0, 0
        self._places_taken = 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="upscale")
        self.app = Starlette(
            routes=[
                *(Route(path, self._page) for path in _PAGE),
                Route("/health", self._health),
                Route("/upscale", self._upscale, methods=["POST"]),
                Route("/bicubic", self._bicubic, methods=["POST"]),
            ],
            exception_handlers={HTTPException: _refused, Exception: _failed},  # pyright: ignore[reportArgumentType]
        )

    async def _page(self, request: Request) -> Response:
        self._check_head(request)
        name, kind = _PAGE[request.url.path]
        text = files("odm_deploy.serving").joinpath("page", name).read_bytes()
        return Response(text, media_type=kind, headers=_HEADERS)

    async def _health(self, request: Request) -> Response:
        self._check_head(request)
        waiting = max(0, self._places_taken - 1)
        now = {"waiting": waiting, "tiles_done": self._tiles_done, "tiles": self._tiles}
        return JSONResponse({**self._facts, **now}, headers=_HEADERS)

    async def _upscale(self, request: Request) -> Response:
        return await self._answer(request, partial(self._engine.upscale, track=self._count_tiles))

    async def _bicubic(self, request: Request) -> Response:
        return await self._answer(request, partial(interpolate, scale=self._engine.scale))

    async def _answer(self, request: Request, enlarge: Callable[[Image], Image]) -> Response:
        self._check_head(request)
        async with self._place():
            data = await self._body(request)
            try:
                work = partial(answer, data, enlarge, self._limits.pixels)
                png, timings_ms = await asyncio.get_running_loop().run_in_executor(self._worker, work)
            except TooLargeError as error:
                raise HTTPException(413, f"the image is too large: {error.why}; send a smaller one") from error
            except OdmError as error:
                raise HTTPException(400, str(error)) from error
            except MemoryError as error:
                raise HTTPException(503, "out of memory; send a smaller image") from error
        timing = ", ".join(f"{part};dur={spent:.1f}" for part, spent in timings_ms.items())
        return Response(png, media_type="image/png", headers={**_HEADERS, "server-timing": timing})

    def _count_tiles(self, items: Iterable[T], total: int, stage: str = "") -> Iterator[T]:
        """A `Track` for /health, of the image under way."""
        del stage
        self._tiles_done, self._tiles = 0, total
        try:
            for item in items:
                yield item
                self._tiles_done += 1
        finally:
            # Whoever joins tiles may not ask for what comes after the last.
            self._tiles_done, self._tiles = 0, 0

    def _check_head(self, request: Request) -> None:
        """Refuse what pages of other sites ask browsers on this machine to send, and a request of two lengths."""
        host = request.headers.get("host", "")
        name = _HOST.fullmatch(host)
        if name is None:
            raise HTTPException(400, "the Host header names no host")
        if self._local and (name[1] or name[2]).lower() not in LOOPBACK:
            raise HTTPException(403, "this server answers to loopback names only")
        origin = request.headers.get("origin")
        # An origin is a scheme and exactly what Host says; "null" and what is no URL are other sites' as well.
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            raise HTTPException(403, "pages of other sites may not use this server")
        if "transfer-encoding" in request.headers and "content-length" in request.headers:
            # A proxy in front may take the other of the two for the end of this request (RFC 9112, section 6.1).
            raise HTTPException(400, "the request states two lengths", {"connection": "close"})

    @asynccontextmanager
    async def _place(self) -> AsyncGenerator[None]:
        """A place in the queue, from the first byte of the upload on: bodies that wait take memory."""
        if self._places_taken > self._limits.waiting:
            raise HTTPException(
                503, f"{self._limits.waiting} images are waiting already; try again", {"retry-after": "1"}
            )
        self._places_taken += 1
        try:
            yield
        finally:
            self._places_taken -= 1

    async def _body(self, request: Request) -> bytes:
        limit = self._limits.body_bytes
        too_large = HTTPException(413, f"the request is too large; the limit is {limit} bytes")
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        data = bytearray()
        try:
            async with asyncio.timeout(self._limits.upload_s):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > limit:
                        raise too_large
        except ClientDisconnect:
            raise HTTPException(400, "the upload ended before its end") from None
        except TimeoutError:
            raise HTTPException(408, f"the upload took longer than {self._limits.upload_s:g} s") from None
        return bytes(data)


async def _refused(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, headers={**_HEADERS, **(error.headers or {})})


async def _failed(_: Request, error: Exception) -> Response:
    """What nobody foresaw: the server's log gets the traceback, the client does not."""
    return JSONResponse({"error": f"internal error ({type(error).__name__})"}, 500, headers=_HEADERS)
