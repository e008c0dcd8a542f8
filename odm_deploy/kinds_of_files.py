"""What a file that somebody named by mistake is, in words: nobody should have to read magic numbers."""

from __future__ import annotations

import stat
from pathlib import Path

MODEL_WANTED = "a model.pt is wanted, as odm-deploy quantize writes it"
"""What to do, for whoever named something else than a quantized model."""

_BY_SUFFIX = {
    "an image": ".avif .bmp .gif .heic .jfif .jpe .jpeg .jpg .pgm .png .ppm .tif .tiff .webp",
    "a video": ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv .y4m",
    "JSON": ".json",
    "a recipe": ".toml",
    "an ONNX file": ".onnx",
    "an archive": ".zip .tar .gz .xz .7z",
    "an archive of numpy's": ".npz .npy",
    "a table": ".csv .jsonl",
    "text": ".md .txt .log .py .yml .yaml .html",
    "a checkpoint": ".pt .pth .ckpt .safetensors",
}
_BEGINNINGS = {
    b"<!doctype": "a web page, not the file that it links to",
    b"<html": "a web page, not the file that it links to",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89png": "a PNG image",
    b"gif8": "a GIF image",
    b"gguf": "a GGUF file",
    b"%pdf": "a PDF file",
    b"rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x1f\x8b": "an archive made by gzip",
}
"""How files begin that are taken for weights or graphs, in lower case: what a click saved, or somebody renamed."""
BEGINNING_BYTES = 24
"""As many bytes of a file as `kind_by_beginning` looks at."""
_TORCH_ARCHIVE = b"PK\x03\x04"
"""How what `torch.save` writes begins, and every other zip archive."""
_SPECIAL = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_KINDS = {suffix: kind for kind, suffixes in _BY_SUFFIX.items() for suffix in suffixes.split()}


def kind_of(path: Path | str) -> str:
    """What lies there, or goes by such a name, such as `an image`; empty where neither says."""
    path = Path(path)
    if path.is_dir():
        return "a bundle" if (path / "manifest.json").is_file() else "a folder"
    return kind_by_name(path)


def kind_by_name(path: Path | str) -> str:
    """What goes by such a name, whether or not it is there; empty where the name does not say."""
    return _KINDS.get(Path(path).suffix.lower(), "")


def is_checkpoint(path: Path | str) -> bool:
    """Whether weights or a model.pt lie there, by the name, or where that says nothing by how the file begins."""
    path = Path(path)
    if kind := kind_by_name(path):
        return kind == "a checkpoint"
    if why_no_file(path):
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_TORCH_ARCHIVE)) == _TORCH_ARCHIVE
    except OSError:
        return False


def kind_by_beginning(start: bytes) -> str:
    """What begins so, whatever its name, such as `a web page`; empty where nobody knows."""
    start = start.lstrip().lower()
    return next((kind for beginning, kind in _BEGINNINGS.items() if start.startswith(beginning)), "")


def why_no_file(path: Path | str) -> str:
    """Why nobody can read a file there, in words; empty where a regular one lies, which may still be forbidden.

    Everybody asks before opening: a pipe would be waited for, and a device may never end.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "it is a link to nowhere" if path.is_symlink() else "there is no such file"
    except (OSError, ValueError) as error:
        # ValueError: no file can have such a name.
        return getattr(error, "strerror", None) or str(error)
    if stat.S_ISREG(mode):
        return ""
    if stat.S_ISDIR(mode):
        return f"it is {kind_of(path)}"
    return f"it is no regular file, but {_SPECIAL.get(stat.S_IFMT(mode), 'something else')}"
