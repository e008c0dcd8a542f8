"""What a file that somebody named by mistake is, in words: nobody should have to read magic numbers."""

from __future__ import annotations

from pathlib import Path

_BY_SUFFIX = {
    "an image": ".avif .bmp .gif .heic .jfif .jpe .jpeg .jpg .pgm .png .ppm .tif .tiff .webp",
    "a video": ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv .y4m",
    "JSON": ".json",
    "a recipe": ".toml",
    "an ONNX file": ".onnx",
    "an archive": ".zip .tar .gz .xz .7z",
    "a table": ".csv .jsonl",
    "text": ".md .txt .log .py .yml .yaml .html",
    "a checkpoint": ".pt .pth .ckpt .safetensors",
}
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
