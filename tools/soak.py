"""The server under concurrent, slow, broken and oversize clients, with an eye on its memory.

python tools/soak.py --minutes 3
python tools/soak.py --minutes 60 --rate 8    an hour that takes about a fifth of a core

Starts `odm-deploy serve` on the demo's model, lets clients of every kind at it, and compares each good answer with the
first one. Ends with 1 if an answer was wrong, the server died, its memory kept growing, or it logged a traceback.
"""

from __future__ import annotations

import io
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Self

import click
import numpy as np
from PIL import Image
from toolbox import COMMAND, ROOT
from torture.forked import resident_bytes

from odm_deploy.terminal import run

DEMO = ROOT / "tools" / "demo" / "edsr_baseline_x4_w4a4.pt"
SIZE = (20, 24)
KINDS = {
    "good": 12,
    "damaged": 4,
    "oversize": 4,
    "half a head": 4,
    "hangs up": 4,
    "slow": 4,
    "nonsense": 4,
    "crowd of half heads": 1,
}
"""What clients do, and how often."""
CROWD = 40
"""Connections of a crowd."""
GROWTH_MIB = 64
"""So much more at the end than after a fifth of the time is noise of the allocator; more is a leak."""


@dataclass
class Tally:
    """What clients saw."""

    seen: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str, wrong: str = "") -> None:
        """Count one exchange."""
        with self.lock:
            self.seen[what] += 1
            if wrong:
                self.wrong.append(f"{what}: {wrong}")


@click.command(context_settings=COMMAND)
@click.option("--minutes", default=3.0, show_default=True)
@click.option("--clients", default=6, show_default=True, help="At once.")
@click.option("--rate", type=float, help="Exchanges a second that are begun at most; as many as go otherwise.")
@click.option("--bundle", type=click.Path(path_type=Path), help="A bundle at hand; the demo's is exported otherwise.")
def command(minutes: float, clients: int, rate: float | None, bundle: Path | None) -> None:
    """Let them at it, and print what happened."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        bundle = bundle or exported(Path(folder))
        log = Path(folder) / "log"
        serve = [sys.executable, "-m", "odm_deploy", "serve", "--model", str(bundle), "--port", "0"]
        with log.open("wb") as stream, subprocess.Popen(serve, stderr=stream, stdout=stream) as server:
            try:
                pace = 0.0 if rate is None else clients / rate
                tally, sizes, used_s = _soak(server, _port_of(server, log), minutes * 60, clients, pace)
            finally:
                server.terminate()
        said = log.read_text(errors="replace")
    problems = list(tally.wrong)
    early, late = sizes[len(sizes) // 5], sizes[-1]
    if late - early > GROWTH_MIB:
        problems.append(f"memory grew from {early} to {late} MiB")
    if "Traceback" in said:
        problems.append(f"the log holds a traceback: {said[said.index('Traceback') :][:500]}")
    seen = {what: count for what, count in sorted(tally.seen.items()) if what != "open files"}
    click.echo(f"{sum(seen.values())} exchanges in {minutes:g} minutes: {seen}")
    click.echo(f"resident memory {early} MiB after a fifth of the time, {late} at the end, {max(sizes)} at most")
    tenths = [sizes[min(len(sizes) - 1, tenth * len(sizes) // 10)] for tenth in range(11)]
    click.echo(f"resident memory at every tenth of the time, MiB: {', '.join(map(str, tenths))}")
    click.echo(
        f"open files of the server at the end: {tally.seen.pop('open files', 0)}; its processor time {used_s:.0f} s"
    )
    click.echo(f"log: {len(said)} bytes")
    click.echo("\n".join(problems[:20]))
    sys.exit(1 if problems else 0)


def exported(folder: Path) -> Path:
    """The demo's bundle, written into a folder."""
    export = [sys.executable, "-m", "odm_deploy", "export", str(DEMO), "-o", str(folder / "bundle"), "--no-engine"]
    subprocess.run(export, check=True)
    return folder / "bundle"


def _port_of(server: subprocess.Popen[bytes], log: Path) -> int:
    for _ in range(1200):
        if found := re.search(r"http://[^:]+:(\d+)", log.read_text(errors="replace")):
            return int(found[1])
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(f"the server does not start: {log.read_text(errors='replace')}")


def _soak(
    server: subprocess.Popen[bytes], port: int, seconds: float, clients: int, pace: float
) -> tuple[Tally, list[int], float]:
    """What clients saw, the server's memory in MiB every second, and its processor time in seconds."""
    tally, deadline, sizes = Tally(), time.monotonic() + seconds, list[int]()
    images = _Images.draw()
    expected = _post(port, images.good)[1]
    threads = [
        threading.Thread(target=_client, args=(port, images, expected, deadline, tally, number, pace))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if server.poll() is not None:
            tally.note("server", f"it ended with {server.returncode}")
            break
        sizes.append(resident_bytes(server.pid) >> 20)
        time.sleep(1)
    for thread in threads:
        thread.join()
    status, answer = _post(port, images.good)
    tally.note("after all", "" if (status, answer) == (200, expected) else f"status {status}")
    tally.seen["open files"] = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    used_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return tally, sizes, used_s


@dataclass(frozen=True)
class _Images:
    """Encoded images: one to upscale, one that is too large."""

    good: bytes
    oversize: bytes

    @classmethod
    def draw(cls) -> Self:
        rng = np.random.default_rng(0)
        good, oversize = io.BytesIO(), io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(good, "png")
        Image.new("1", (4000, 4000)).save(oversize, "png")
        return cls(good.getvalue(), oversize.getvalue())


def _post(port: int, body: bytes, path: str = "/upscale") -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=90)
    try:
        connection.request("POST", path, body, {"Content-Type": "image/png"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _client(port: int, images: _Images, expected: bytes, deadline: float, tally: Tally, seed: int, pace: float) -> None:
    """One client after another, of a kind drawn at random, begun no faster than one in `pace` seconds."""
    rng = random.Random(seed)
    kinds, weights = list(KINDS), list(KINDS.values())
    while (begun := time.monotonic()) < deadline:
        (kind,) = rng.choices(kinds, weights)
        try:
            tally.note(kind, _exchange(kind, port, images, expected, rng))
        except (OSError, HTTPException) as error:
            # The server may refuse a connection when there are many; a good client then tries again.
            tally.note(f"{kind}, refused", "" if kind != "good" or isinstance(error, ConnectionError) else repr(error))
        time.sleep(max(0.0, begun + pace - time.monotonic()))


def _exchange(kind: str, port: int, images: _Images, expected: bytes, rng: random.Random) -> str:
    image = images.good
    if kind == "good":
        status, answer = _post(port, image)
        return "" if (status == 200 and answer == expected) or status == 503 else f"status {status}"
    if kind == "damaged":
        place = rng.randrange(len(image))
        status, _ = _post(port, image[:place] + rng.randbytes(8) + image[place + 8 :])
        return "" if status in (200, 400, 413, 415, 422, 503) else f"status {status}"
    if kind == "oversize":
        status, _ = _post(port, images.oversize)
        return "" if status in (400, 413, 422, 503) else f"status {status}"
    head = f"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n".encode()
    if kind == "crowd of half heads":
        with ExitStack() as stack:
            for _ in range(CROWD):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
                connection.sendall(head[:20])
            time.sleep(0.5)
        return ""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        match kind:
            case "half a head":
                connection.sendall(head[: rng.randrange(1, 30)])
                time.sleep(0.2)
            case "hangs up":
                connection.sendall(head + image[: rng.randrange(len(image))])
            case "slow":
                for start in range(0, len(head + image), 256):
                    connection.sendall((head + image)[start : start + 256])
                    time.sleep(0.02)
                connection.recv(64)
            case _:
                connection.sendall(rng.randbytes(200) + b"\r\n\r\n")
                connection.recv(64)
    return ""


if __name__ == "__main__":
    run(command, "soak.py")
