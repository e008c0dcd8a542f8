"""An image of the largest contrasts there are, which few photographs show: lettering, letterboxes, burnt-out skies."""

from __future__ import annotations

import torch
from torch import Tensor

_WHITE = 255.0


def contrast_chart(height: int, width: int) -> Tensor:
    """Two black and two white quarters, corner to corner.

    Args:
        height: of the image, in pixels.
        width: likewise.

    Returns:
        float32 [1, 3, height, width] in 0..255.
    """
    chart = torch.zeros(1, 3, height, width)
    chart[..., : height // 2, width // 2 :] = _WHITE
    chart[..., height // 2 :, : width // 2] = _WHITE
    return chart
