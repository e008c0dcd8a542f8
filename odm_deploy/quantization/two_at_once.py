"""Two threads of PyTorch and numpy side by side, each on half of the cores.

Left alone, both would take all of them, and the pools of PyTorch and of numpy's OpenBLAS wait for work by spinning: two
cores then do less than one. And whoever holds Python's lock keeps it for 5 ms, in which the other could have started
many products.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

_TURN_S = 1e-4


@contextmanager
def two_at_once() -> Generator[None]:
    """While this lasts, this thread and those that start in it use half as many cores as before."""
    threads, turn_s = torch.get_num_threads(), sys.getswitchinterval()
    half = max(threads // 2, 1)
    with threadpool_limits(limits=half, user_api="blas"):
        torch.set_num_threads(half)
        sys.setswitchinterval(_TURN_S)
        try:
            yield
        finally:
            sys.setswitchinterval(turn_s)
            torch.set_num_threads(threads)
