"""A headless Chromium at the end of a pipe: pages opened, pointed at and looked at as a person would.

Speaks the Chrome DevTools Protocol through `--remote-debugging-pipe`, which needs no client library.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-pipe"
)


class Browser:
    """One page of a browser with a profile of its own."""

    def __init__(self, profile: Path, width: int = 1000, height: int = 800, *, dark: bool = False) -> None:
        assert CHROMIUM is not None
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, *_OPTIONS.split(), f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._input = os.fdopen(self._read, "rb")
        self._ids, self._session = itertools.count(1), ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        self.call("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._write)
        self._input.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _message(self) -> bytes:
        data = bytearray()
        while (byte := self._input.read(1)) not in (b"", b"\0"):
            data += byte
        return bytes(data)

    def open(self, address: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"{script}\n{self.run('document.body.innerText')}"
            time.sleep(0.1)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element in the window."""
        script = f"(({{x, y, width, height}}) => [x, y, width, height])(document.querySelector('{selector}')"
        return tuple(self.run(f"{script}.getBoundingClientRect())"))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag with the mouse."""
        self.mouse("mousePressed", *start, buttons=1)
        for step in (0.25, 0.5, 0.75, 1):
            self.mouse("mouseMoved", *(a + step * (b - a) for a, b in zip(start, end, strict=True)), buttons=1)
        self.mouse("mouseReleased", *end)

    def mouse(self, kind: str, x: float, y: float, buttons: int = 0) -> None:
        """One event of the left button at a place in the window."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1)

    def swipe(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag with a finger."""
        self.touch("touchStart", start)
        for step in (0.1, 0.25, 0.5, 0.75, 1):
            self.touch("touchMove", (start[0] + step * (end[0] - start[0]), start[1] + step * (end[1] - start[1])))
        self.touch("touchEnd")

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        """One event of a finger."""
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points])

    def key(self, name: str) -> None:
        """Press a key that has a name, such as ArrowLeft."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the window, or of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
