"""A folder of images as the world sends them: broken, lying, odd, and good ones of rare kinds among them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from tests.factories import random_images
from tests.png_files import chunk, plain_png

RGB = random_images(48, 64)[0].transpose(1, 2, 0).astype(np.uint8)

REFUSED = {
    "animated.gif": "it holds several frames",
    "animated.png": "it holds several frames",
    "animated.webp": "it holds several frames",
    "bomb.png": "200000000 pixels, more than the limit of 67108864; cut it",
    "checksum.png": "checksum",
    "damaged\nname.png": "the file is empty",
    "dangling.png": "it is a link to nowhere",
    "empty.png": "the file is empty",
    "floats.tiff": "its samples are floating-point numbers",
    "folder.png": "it is a folder",
    "huge.png": "3600000000 pixels, more than the limit of 67108864; cut it",
    "loop.png": "symbolic links",
    "pipe.png": "it is no regular file",
    "text.png": "it is none of BMP",
    "truncated.jpg": "truncated",
    "truncated.png": "Truncated",
    "truncated.webp": "damaged or end too early",
}
"""File name -> what its line must say."""
UPSCALED = {
    "bilevel.png": "1",
    "cmyk.jpg": "CMYK",
    "deep.png": "RGB",
    "dot.png": "RGB",
    "gray.jpg": "L",
    "line\nbreak.png": "RGB",
    "palette.png": "P",
    "schnee☃ und eis.png": "RGB",
    os.fsdecode(b"not-utf8-\xff.png"): "RGB",
}
"""File name -> Pillow's mode of it."""


def write_hostile_images(folder: Path) -> None:
    """Make the files of `REFUSED` and `UPSCALED`."""
    folder.mkdir(parents=True)
    picture = PillowImage.fromarray(RGB)
    for name, mode in UPSCALED.items():
        source = picture.crop((0, 0, 1, 1)) if name == "dot.png" else picture
        source.convert(mode).save(folder / name)
    palette = picture.convert("P")
    palette.save(folder / "palette.png", transparency=int(np.argmax(np.bincount(np.asarray(palette).ravel()))))
    plain_png(folder / "deep.png", RGB.astype(np.uint16) * 200)

    other = PillowImage.fromarray(255 - RGB)
    for suffix in ("gif", "png", "webp"):
        picture.save(folder / f"animated.{suffix}", save_all=True, append_images=[other])
    for suffix in ("jpg", "png", "webp"):
        picture.save(folder / f"truncated.{suffix}")
        whole = (folder / f"truncated.{suffix}").read_bytes()
        (folder / f"truncated.{suffix}").write_bytes(whole[: len(whole) // 2])
    # A few kilobytes that are two hundred megapixels, and a header that promises more than Pillow itself would open.
    PillowImage.new("1", (20_000, 10_000)).save(folder / "bomb.png")
    picture.save(folder / "huge.png")
    content = (folder / "huge.png").read_bytes()
    header = (60_000).to_bytes(4, "big") * 2 + content[24:29]
    (folder / "huge.png").write_bytes(content[:8] + chunk(b"IHDR", header) + content[33:])
    picture.save(folder / "checksum.png")
    damaged = bytearray((folder / "checksum.png").read_bytes())
    damaged[damaged.index(b"IDAT") + 300] ^= 1
    (folder / "checksum.png").write_bytes(damaged)
    (folder / "empty.png").touch()
    (folder / "damaged\nname.png").touch()
    (folder / "text.png").write_text("not at all an image")
    PillowImage.fromarray(np.ones((4, 4), np.float32)).save(folder / "floats.tiff")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
