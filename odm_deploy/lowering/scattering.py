"""The weights of a convolution in front of a pixel shuffle that equals one behind it, and the way back; numpy only.

A k x k convolution behind a shuffle by r is one of r*r times the channels before it, each of whose taps is one of the
old ones or zero.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray


def scattered(weight: NDArray[Any], block: int) -> NDArray[Any]:
    """Weights of the convolution before a pixel shuffle (CRD) that equals one behind it.

    Args:
        weight: [O, C, k, l], odd k and l, of the convolution behind the shuffle; it pads k//2 and l//2 zeros.
        block: of the shuffle.

    Returns:
        [O*block^2, C*block^2, k', l'], same dtype: channel o*block^2 + block*i + j computes what pixel (i, j) of each
        block was; odd k' and l', just large enough.
    """
    outputs, inputs, height, width = weight.shape
    reach = [-(-(size // 2) // block) for size in (height, width)]
    shape = (outputs * block**2, inputs * block**2, 2 * reach[0] + 1, 2 * reach[1] + 1)
    moved = np.zeros(shape, weight.dtype)
    for pixel, u, v, (channel, y, x) in _taps(height, width, reach, block):
        moved[pixel :: block**2, channel :: block**2, y, x] = weight[:, :, u, v]
    return moved


def gathered(weight: NDArray[Any], block: int) -> NDArray[Any] | None:
    """What `scattered` made these weights of, the smallest of them; None where nothing else than zeros could be it."""
    outputs, inputs, rows, columns = weight.shape
    if block < 2 or outputs % block**2 or inputs % block**2 or not rows % 2 or not columns % 2:
        return None
    reach = [rows // 2, columns // 2]
    height, width = (2 * each * block + 1 for each in reach)
    found = np.zeros((outputs // block**2, inputs // block**2, height, width), weight.dtype)
    for pixel, u, v, (channel, y, x) in _taps(height, width, reach, block):
        found[:, :, u, v] = weight[pixel :: block**2, channel :: block**2, y, x]
    while min(found.shape[2:]) > 1 and not (found[:, :, [0, -1]].any() or found[:, :, :, [0, -1]].any()):
        found = found[:, :, 1:-1, 1:-1]
    again = scattered(found, block)
    return found if found.any() and again.shape == weight.shape and np.array_equal(again, weight) else None


def _taps(
    height: int, width: int, reach: list[int], block: int
) -> Generator[tuple[int, int, int, tuple[int, int, int]]]:
    """Each pixel of a block with each tap of a kernel: the pixel's number, the tap, and the one it becomes.

    That is the number of a pixel in its block, and where that block is.
    """
    for i, j, u, v in np.ndindex(block, block, height, width):
        cell_y, y = divmod(i + u - height // 2, block)
        cell_x, x = divmod(j + v - width // 2, block)
        yield i * block + j, u, v, (block * y + x, cell_y + reach[0], cell_x + reach[1])
