"""The page of `serve` in a real browser: upscaling, the divider under mouse, finger and keys, 1:1, errors."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from odm_deploy.imaging.image import Image
from odm_deploy.imaging.writing import encode_png
from tests.browser import CHROMIUM, Browser
from tests.conftest import REPOSITORY
from tests.factories import random_images

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the page with")

AT = "Number(document.querySelector('#divider').dataset.at)"
SHOWN = "!document.querySelector('#result').hidden"


@pytest.fixture(scope="module")
def address(tiny_bundle):
    """The command itself, on a free port."""
    command = [sys.executable, "-m", "odm_deploy", "serve", "--model", tiny_bundle, "--port", "0", "--tile", "64"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        yield re.search(r"http://[\d.:]+", line)[0]
        server.terminate()


@pytest.fixture(params=[(390, False), (1440, True)], ids=["phone", "desktop, dark"])
def browser(request, address, tmp_path):
    width, dark = request.param
    with Browser(tmp_path / "profile", width, 800, dark=dark) as opened:
        opened.open(f"{address}/#sample")
        opened.wait_for(f"document.readyState == 'complete' && {SHOWN}")
        yield opened


def upscale(browser, data: bytes) -> None:
    encoded = base64.b64encode(data).decode()
    bytes_ = f"Uint8Array.from(atob('{encoded}'), (c) => c.charCodeAt(0))"
    browser.run(f"void upscale(new Blob([{bytes_}]), 'my photo.jpeg')")


def test_the_sample_comes_back_labelled(browser, tiny_bundle):
    text = browser.run("document.body.innerText")
    assert tiny_bundle.name in text
    assert "edsr, enlarges 2 times, on openvino" in text
    assert "up to 4 megapixels and 32 MiB" in text
    assert re.search(r"Input\s+120 × 80 pixels\s+Result\s+240 × 160 pixels\s+Time\s+[\d.]+ s\s", text), text
    assert browser.run("document.querySelector('#download').download") == "sample_upscaled.png"
    assert browser.run("document.querySelector('#download').href.startsWith('blob:')")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    # Nothing was asked of any other server, the browser's own log of requests says.
    outside = "performance.getEntriesByType('resource').filter(({name}) => !name.startsWith(location.origin)"
    assert browser.run(f"{outside} && !name.startsWith('blob:') && !name.startsWith('data:')).length") == 0


def test_the_divider_follows_mouse_finger_and_keys(browser):
    left, top, width, height = browser.box("#picture")
    middle = top + height / 2
    assert browser.run(AT) == 50
    # From anywhere on the picture, and nothing gets selected or dragged away.
    browser.drag((left + 0.8 * width, middle), (left + 0.25 * width, middle + 10))
    assert browser.run(AT) == pytest.approx(25, abs=1)
    assert browser.run("getSelection().toString()") == ""
    shown = browser.run("getComputedStyle(document.querySelector('#upscaled')).clipPath")
    assert float(re.search(r"([\d.]+)%\)$", shown)[1]) == pytest.approx(25, abs=1)
    browser.drag((left + 0.25 * width, middle), (left + 2 * width, middle))
    assert browser.run(AT) == 100
    browser.call("Emulation.setTouchEmulationEnabled", enabled=True)
    browser.swipe((left + 0.9 * width, middle), (left + 0.4 * width, middle))
    assert browser.run(AT) == pytest.approx(40, abs=2)
    browser.run("document.querySelector('#divider').focus()")
    before = browser.run(AT)
    for name in ("ArrowLeft", "ArrowLeft", "ArrowRight"):
        browser.key(name)
    assert browser.run(AT) == pytest.approx(before - 1)
    browser.key("End")
    assert browser.run(AT) == 100
    assert browser.run("document.querySelector('#divider').ariaValueNow") == "100"


def test_one_to_one_shows_pixels_and_keeps_the_divider(browser):
    image = random_images(300, 700, seed=1)[0].transpose(1, 2, 0).astype(np.uint8)
    upscale(browser, encode_png(Image(image)))
    browser.wait_for("document.querySelector('#output').textContent == '1400 × 600 pixels' && " + SHOWN)
    assert browser.run("document.querySelector('#download').download") == "my photo_upscaled.png"
    browser.run("move(75)")
    browser.run("document.querySelector('#zoom').click()")
    assert browser.box("#picture")[2] == 1400
    left, _, width, _ = browser.box("#stage")
    line_left, _, line_width, _ = browser.box("#divider")
    # In sight; in the middle where the picture goes on far enough.
    assert left <= line_left + line_width / 2 <= left + width
    if width < 700:
        assert line_left + line_width / 2 == pytest.approx(left + width / 2, abs=2)
    browser.run("document.querySelector('#zoom').click()")
    assert browser.box("#picture")[2] <= width


def test_what_the_server_refuses_is_said_and_the_page_goes_on(browser):
    upscale(browser, b"no image at all")
    browser.wait_for("document.querySelector('#status').classList.contains('failed')")
    assert "it is none of BMP, GIF, JPEG, PNG" in browser.run("document.querySelector('#status').textContent")
    # A result that was there stays in sight.
    assert browser.run("document.querySelector('#work').hidden && !document.body.classList.contains('busy')")
    browser.run("document.querySelector('#sample').click()")
    browser.wait_for(SHOWN)
