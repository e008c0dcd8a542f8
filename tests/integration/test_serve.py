"""The HTTP server, over real connections on loopback: images, limits, hostile requests."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import uvicorn
from PIL import Image as PillowImage

from odm_deploy.engine import Engine
from odm_deploy.imaging.resize import imresize
from odm_deploy.installing import install_extra
from odm_deploy.serving.connections import BoundedConnection, most_connections
from odm_deploy.serving.http import Limits, http_app
from tests.command_line import run_cli
from tests.factories import random_images
from tests.png_files import ffmpeg_png, ffmpeg_samples

MAX_PIXELS = 40 * 50
LIMITS = Limits(body_bytes=20_000, pixels=MAX_PIXELS, waiting=1, upload_s=1.0)


class Impatient(BoundedConnection):
    """Five connections, half a second for a head."""

    most, head_s = 5, 0.5


@contextmanager
def serving(app, connection=Impatient):
    """A server in a thread; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="warning", http=connection, ws="none", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(tiny_bundle):
    with Engine.open(tiny_bundle, "onnxruntime") as engine, serving(http_app(engine, LIMITS)) as port:
        yield port


def pixels(height=20, width=30, channels=3):
    return (
        random_images(height, width, count=2)[0:2]
        .reshape(6, height, width)[:channels]
        .transpose(1, 2, 0)
        .astype(np.uint8)
    )


def encoded(array, kind="PNG"):
    stream = io.BytesIO()
    PillowImage.fromarray(np.ascontiguousarray(array)).save(stream, kind)
    return stream.getvalue()


def ask(port, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, headers or {})
    reply = connection.getresponse()
    data = reply.read()
    connection.close()
    return reply, data


def refusal(port, body, status, **headers):
    reply, data = ask(port, "POST", "/upscale", body, {key.replace("_", "-"): value for key, value in headers.items()})
    assert reply.status == status, data
    assert reply.getheader("content-type") == "application/json"
    assert b"\n" not in data
    return json.loads(data)["error"]


def test_the_answer_is_what_the_engine_computes(port, tiny_bundle):
    image = pixels()
    reply, data = ask(port, "POST", "/upscale", encoded(image))
    assert (reply.status, reply.getheader("content-type")) == (200, "image/png")
    with Engine.open(tiny_bundle, "onnxruntime") as engine:
        np.testing.assert_array_equal(np.asarray(PillowImage.open(io.BytesIO(data))), engine.upscale(image))
    assert re.fullmatch(r"decode;dur=[\d.]+, upscale;dur=[\d.]+, encode;dur=[\d.]+", reply.getheader("server-timing"))


def test_bicubic_to_compare_with(port):
    image = pixels()
    reply, data = ask(port, "POST", "/bicubic", encoded(image))
    assert reply.status == 200
    np.testing.assert_array_equal(np.asarray(PillowImage.open(io.BytesIO(data))), imresize(image, 2))


@pytest.mark.parametrize("path", ["/upscale", "/bicubic"])
def test_transparency_is_kept(port, path):
    reply, data = ask(port, "POST", path, encoded(pixels(channels=4)))
    assert reply.status == 200
    assert PillowImage.open(io.BytesIO(data)).mode == "RGBA"


def test_16_bits_stay_16_bits(port, tiny_bundle, tmp_path):
    image = (pixels() * np.uint16(257) + np.arange(30, dtype=np.uint16)[:, None]).clip(0, 65535).astype(np.uint16)
    sent, got = tmp_path / "in.png", tmp_path / "out.png"
    for path in ("/bicubic", "/upscale"):
        reply, data = ask(port, "POST", path, ffmpeg_png(sent, image).read_bytes())
        assert reply.status == 200
    got.write_bytes(data)
    with Engine.open(tiny_bundle, "onnxruntime") as engine:
        np.testing.assert_array_equal(ffmpeg_samples(got), engine.upscale(image, bits=16))


def bomb(width, height):
    """A PNG whose header promises more than anybody should decode."""
    chunks = b""
    for kind, content in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
    ):
        chunks += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(("width", "height"), [(51, 40), (10_000, 10_000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_before_they_are_decoded(port, width, height):
    assert "too large" in refusal(port, bomb(width, height), 413)


@pytest.mark.parametrize(
    "body", [b"", b"no image at all", encoded(pixels())[:300], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image_gets_one_line_that_names_no_file(port, body):
    line = refusal(port, body, 400)
    assert "cannot read the image" in line
    assert "/in" not in line and "odm-deploy-" not in line


def test_animations_are_refused(port):
    frames = [PillowImage.fromarray(pixels(8, 8) // step) for step in (1, 2)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    assert "several frames" in refusal(port, stream.getvalue(), 400)


def test_too_many_bytes_are_refused_with_and_without_announcement(port):
    # The announced length alone decides: nothing of the body is sent.
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        raw.sendall(b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")
    assert "20000 bytes" in refusal(port, iter([b"x" * 15_000] * 2), 413)


def test_slow_uploads_are_given_up(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        raw.sendall(b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc")
        assert raw.recv(4096).startswith(b"HTTP/1.1 408")


def test_pages_of_other_sites_get_nothing(port):
    assert "other sites" in refusal(port, encoded(pixels()), 403, Origin="https://example.org")
    assert "loopback" in refusal(port, encoded(pixels()), 403, Host="rebound.example.org")
    own = {"Origin": f"http://127.0.0.1:{port}"}
    assert ask(port, "POST", "/upscale", encoded(pixels()), own)[0].status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://[x"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "x" * 4000}, 403),
        ({"Host": "127.0.0.1:x"}, 400),
        ({"Host": "127.0.0.1:80:80"}, 400),
        ({"Host": "evil@127.0.0.1"}, 400),
        ({"Host": "[::1"}, 400),
        ({"Host": ""}, 400),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "LOCALHOST"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "https://localhost:8000"}, 200),
    ],
)
def test_headers_of_any_kind_have_an_answer(port, headers, status):
    reply, data = ask(port, "GET", "/health", headers=headers)
    assert reply.status == status, data
    assert "error" in json.loads(data) or status == 200


@pytest.mark.parametrize("path", ["/upscale", "/health"])
def test_what_follows_a_request_of_two_lengths_is_no_request(port, path):
    lengths = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    method = "POST" if path == "/upscale" else "GET"
    text = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lengths}GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with half_sent(port, text.encode()) as client:
        received = b"".join(iter(lambda: _received(client), b""))
    assert received.count(b"HTTP/1.1 ") == received.count(b"HTTP/1.1 400") == 1


def half_sent(port, text=b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "):
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(text)
    return client


@pytest.mark.parametrize(
    "before", [b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"], ids=["first", "second request"]
)
def test_a_head_that_does_not_come_ends_the_connection(port, before):
    with half_sent(port, before + b"GET /health HTTP/1.1\r\nHost: 127") as client:
        received = b"".join(iter(lambda: _received(client), b""))
    assert received.count(b"200 OK") == bool(before)


def _received(client):
    try:
        return client.recv(1 << 16)
    except ConnectionResetError:
        return b""


def test_clients_that_only_wait_keep_nobody_out(port):
    held = [half_sent(port) for _ in range(40)]
    reply, _ = ask(port, "GET", "/health")
    assert reply.status == 200
    for client in held:
        client.close()


def test_as_many_connections_as_files_allow():
    assert 8 <= most_connections() <= 512
    assert most_connections(at_most=20) == 20


def test_a_client_that_hangs_up_costs_no_traceback(port, caplog):
    for _ in range(5):
        half_sent(port, b"POST /upscale HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nabc").close()
    assert ask(port, "GET", "/health")[0].status == 200
    for _ in range(100):
        if json.loads(ask(port, "GET", "/health")[1])["waiting"] == 0:
            break
    assert not [record for record in caplog.records if record.exc_info]


def test_unknown_paths_and_methods_are_json_errors_too(port):
    for method, path, status in (("GET", "/etc/passwd", 404), ("GET", "/upscale", 405)):
        reply, data = ask(port, method, path)
        assert (reply.status, list(json.loads(data))) == (status, ["error"])


def test_health_says_what_runs(port):
    reply, data = ask(port, "GET", "/health")
    document = json.loads(data)
    assert (reply.status, document["scale"], document["waiting"]) == (200, 2, 0)
    assert document["runtime"]["runtime"] == "onnxruntime"
    assert (document["network"], document["max_pixels"], document["max_bytes"]) == ("edsr", MAX_PIXELS, 20_000)
    assert (document["tiles_done"], document["tiles"]) == (0, 0)


def test_a_full_queue_sends_others_away_and_recovers(port):
    """Uploads that hang take the two places there are; a third request is turned away at once."""
    start = b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc"
    with (
        socket.create_connection(("127.0.0.1", port)) as first,
        socket.create_connection(("127.0.0.1", port)) as second,
    ):
        first.sendall(start)
        second.sendall(start)
        while json.loads(ask(port, "GET", "/health")[1])["waiting"] < 1:
            time.sleep(0.01)
        assert "try again" in refusal(port, encoded(pixels()), 503)
    deadline = time.monotonic() + 10
    while ask(port, "POST", "/upscale", encoded(pixels()))[0].status == 503:
        assert time.monotonic() < deadline


def test_simultaneous_requests_get_their_own_answers(port):
    images = [pixels(10 + index, 12) for index in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for image, (reply, data) in zip(
            images, pool.map(lambda image: ask(port, "POST", "/bicubic", encoded(image)), images), strict=True
        ):
            assert reply.status == 200
            np.testing.assert_array_equal(np.asarray(PillowImage.open(io.BytesIO(data))), imresize(image, 2))


def test_what_nobody_foresaw_is_an_error_without_details(tiny_bundle):
    with Engine.open(tiny_bundle, "onnxruntime") as engine:
        app = http_app(engine, LIMITS)
    # The engine is closed by now: whatever it raises has to end as an answer, and the server has to live on.
    with serving(app) as port:
        for _ in range(2):
            reply, data = ask(port, "POST", "/upscale", encoded(pixels()))
            assert reply.status in (400, 500)
            assert list(json.loads(data)) == ["error"]
            assert b"Traceback" not in data


def test_the_command_serves_until_it_is_ended(tiny_bundle):
    command = [
        sys.executable,
        "-m",
        "odm_deploy",
        "serve",
        "--model",
        str(tiny_bundle),
        "--port",
        "0",
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = None
            while found is None:
                line = process.stderr.readline()
                assert line, "it ended without serving"
                found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            port = int(found[1])
            reply, data = ask(port, "POST", "/upscale", encoded(pixels()))
            assert (reply.status, PillowImage.open(io.BytesIO(data)).size) == (200, (60, 40))
            second = subprocess.run([*command[:-4], "--port", str(port)], capture_output=True, text=True, timeout=60)
            assert second.returncode == 2
            assert f"cannot listen on 127.0.0.1:{port}" in second.stderr
        finally:
            process.terminate()
            process.wait(20)


def test_without_starlette_the_line_says_what_to_install(tiny_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    outcome = run_cli("serve", "--model", tiny_bundle)
    assert outcome.code == 4
    assert install_extra("serve") in outcome.stderr
