"""Low-bit integers packed into bytes, without gaps, the first value in the lowest bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from odm_deploy.errors import InputError


def pack_bits(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Pack values in [0, 2^bits) into ceil(size * bits / 8) bytes; the array is flattened in C order."""
    planes = (values.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack_bits(packed: npt.NDArray[np.uint8], bits: int, count: int) -> npt.NDArray[np.uint8]:
    """The `count` values of `bits` bits that `pack_bits` packed.

    Raises:
        InputError: fewer or more bytes than `count` values need.
    """
    if packed.size != -(-count * bits // 8):
        raise InputError("damaged weight codes", why=f"{packed.size} bytes for {count} codes of {bits} bits")
    planes = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return (planes << np.arange(bits, dtype=np.uint8)).sum(1, dtype=np.uint8)
