"""Half of the cores each, and everything as it was afterwards."""

from __future__ import annotations

import sys
from threading import Thread

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from odm_deploy.quantization.two_at_once import two_at_once


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def state() -> tuple[object, ...]:
    return torch.get_num_threads(), blas_threads(), sys.getswitchinterval()


@pytest.fixture
def four_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    np.ones((2, 2)) @ np.ones((2, 2))
    yield
    torch.set_num_threads(threads)


def test_threads_that_start_meanwhile_have_half_of_the_cores_too(four_threads):
    seen = []
    with two_at_once():
        thread = Thread(target=lambda: seen.append((torch.get_num_threads(), max(blas_threads()))))
        thread.start()
        thread.join()
        assert torch.get_num_threads() == 2
    assert seen[0][0] == 2
    assert seen[0][1] <= 2


def test_all_is_as_it_was_also_behind_an_error(four_threads):
    def interrupted():
        with two_at_once():
            assert state() != before
            raise KeyboardInterrupt

    before = state()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert state() == before


def test_one_core_stays_one(four_threads):
    torch.set_num_threads(1)
    with two_at_once():
        assert torch.get_num_threads() == 1
