"""Images to compare on, each with its ground truth where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from odm_deploy.errors import InputError
from odm_deploy.imaging.reading import list_images, read_rgb
from odm_deploy.proof.parity import Sample


@dataclass(frozen=True)
class SampleFile:
    """Paths of a sample; `load` reads the pixels, so that a list of many stays small."""

    name: str
    low: Path
    truth: Path | None

    def load(self, scale: int) -> Sample:
        """Read the images; ground truth is cropped to the input's size times `scale`.

        Raises:
            InputError: an unreadable image, or ground truth smaller than that.
        """
        low = read_rgb(self.low)
        if self.truth is None:
            return Sample(self.name, low)
        truth = read_rgb(self.truth)
        height, width = low.shape[0] * scale, low.shape[1] * scale
        if truth.shape[0] < height or truth.shape[1] < width:
            raise InputError(
                f"{self.truth} is no ground truth for {self.low}",
                why=f"it is {truth.shape[1]}x{truth.shape[0]}, x{scale} needs {width}x{height}",
                fix="check the scale",
            )
        return Sample(self.name, low, truth[:height, :width])


def find_samples(images: Path, truth: Path | None, scale: int, limit: int | None = None) -> list[SampleFile]:
    """The samples a folder, file or glob names.

    Args:
        images: the network's input images. In a benchmark layout, `.../LR_bicubic/X4`, ground truth is found by itself.
        truth: folder of ground truth images, named like the inputs with or without their `x4` suffix.
        scale: output pixels per input pixel.
        limit: take only the first so many.

    Raises:
        InputError: no images, or an image without its ground truth although a folder was named.
    """
    folder = truth
    if folder is None and images.parent.name == "LR_bicubic" and (images.parent.parent / "HR").is_dir():
        folder = images.parent.parent / "HR"
    by_name = {} if folder is None else {path.stem: path for path in list_images(folder)}
    found: list[SampleFile] = []
    for path in list_images(images)[:limit]:
        name = path.stem.removesuffix(f"x{scale}")
        match = by_name.get(name) or by_name.get(path.stem)
        if truth is not None and match is None:
            raise InputError(f"no ground truth for {path}", why=f"{truth} holds neither {name} nor {path.stem}")
        found.append(SampleFile(name, path, match))
    return found
