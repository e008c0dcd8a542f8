import os
import socket

import pytest

from odm_deploy.bundle import Bundle
from odm_deploy.bundle.plan_header import PlanHeader
from odm_deploy.documents import read_json
from odm_deploy.errors import InputError
from odm_deploy.graphs.files import read_onnx
from odm_deploy.imaging.reading import list_images, read_image
from odm_deploy.kinds_of_files import is_checkpoint, why_no_file
from odm_deploy.networks.weight_files import read_weights
from odm_deploy.upscaling.video import check_video

NO_FILES = {
    "pipe": "it is no regular file, but a pipe",
    "socket": "it is no regular file, but a socket",
    "device": "it is no regular file, but a device",
    "link": "it is a link to nowhere",
    "gone": "there is no such file",
    "file/inside": "there is no such file",
    "folder": "it is a folder",
    "bundle": "it is a bundle",
    "loop": "Too many levels of symbolic links",
    "null\0byte": "null",
    "n" * 300: "File name too long",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    for name, target in (("device", "/dev/zero"), ("link", "nowhere"), ("loop", "loop")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "file").write_text("x")
    for name in ("folder", "bundle"):
        (tmp_path / name).mkdir()
    (tmp_path / "bundle/manifest.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("name", NO_FILES)
def test_what_lies_there_is_told(place, name):
    assert NO_FILES[name] in why_no_file(name)
    assert why_no_file("file") == ""


BEGINNINGS = {
    b"\n<!DOCTYPE html><html>": "it is a web page, not the file that it links to",
    b"version https://git-lfs.github.com/spec/v1": "it is a pointer of Git LFS, not the file itself",
    b"\xff\xd8\xff\xe0\0\x10JFIF": "it is a JPEG image",
    b"\x89PNG\r\n": "it is a PNG image",
}


@pytest.mark.parametrize("start", BEGINNINGS)
@pytest.mark.parametrize(("name", "reader"), [("net.pth", read_weights), ("net.onnx", read_onnx)])
def test_renamed_and_half_downloaded_files_are_told_by_what_they_hold(tmp_path, start, name, reader):
    (tmp_path / name).write_bytes(start + bytes(100))
    with pytest.raises(InputError) as caught:
        reader(tmp_path / name)
    assert caught.value.why == BEGINNINGS[start]
    assert caught.value.fix


READERS = [
    read_weights,
    read_onnx,
    read_json,
    read_image,
    PlanHeader.of_file,
    lambda path: check_video(path, "out.mp4"),
    lambda path: [read_image(each) for each in list_images(path)],
    lambda path: PlanHeader.of_file(Bundle.open(path).path),
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["pipe", "socket", "device", "link", "loop"])
def test_every_reader_says_it_and_waits_for_nothing(place, name, reader):
    if "check_video" in reader.__code__.co_names:
        pytest.importorskip("av")
    with pytest.raises(InputError) as caught:
        reader(place / name)
    assert NO_FILES[name] in str(caught.value) or caught.value.why == "no such file or folder"


@pytest.mark.parametrize("name", ["pipe", "socket", "device", "link", "loop"])
def test_what_is_no_file_is_no_checkpoint_and_not_waited_for(place, name):
    assert not is_checkpoint(place / name)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("w.pth", b"", True),
        ("W.PT", b"", True),
        ("w.safetensors", b"", True),
        ("weights", b"PK\x03\x04 and so on", True),
        ("weights", b"\x08\x08 a graph", False),
        ("weights.onnx", b"PK\x03\x04", False),
        ("photos.zip", b"PK\x03\x04", False),
        ("empty", b"", False),
    ],
)
def test_a_checkpoint_is_known_by_its_name_or_else_by_its_beginning(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert is_checkpoint(tmp_path / name) is expected
