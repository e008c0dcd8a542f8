"""Memory shared with torch and numpy in both directions, on the CPU: on a GPU only the addresses differ."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from odm_deploy.errors import InputError
from odm_deploy.runtimes.dlpack import CPU, BorrowedTensor, export_dlpack


class Exported:
    """Memory of a numpy array, handed out through our own exporter."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.released = 0

    def release(self) -> None:
        self.released += 1

    def __dlpack__(self, **_: object) -> object:
        pointer = self.array.ctypes.data
        return export_dlpack(pointer, self.array.shape, self.array.dtype, (CPU, 0), self.release)

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU, 0


def numbers(dtype: str = "float32") -> np.ndarray:
    return np.arange(24).reshape(2, 3, 4).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("library", [torch.from_dlpack, np.from_dlpack])
def test_other_libraries_see_the_same_memory(library, dtype):
    exported = Exported(numbers(dtype))
    seen = library(exported)
    assert tuple(seen.shape) == (2, 3, 4)
    assert str(seen.dtype).removeprefix("torch.") == dtype
    exported.array[1, 2, 3] = 99
    assert seen[1, 2, 3] == 99
    assert exported.released == 0
    del seen
    gc.collect()
    assert exported.released == 1


def test_capsule_nobody_consumes_is_released():
    exported = Exported(numbers())
    capsule = exported.__dlpack__()
    del capsule
    gc.collect()
    assert exported.released == 1


@pytest.mark.parametrize("make", [torch.from_numpy, lambda array: array, Exported])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_tensors_of_other_libraries_are_read_in_place(make, dtype):
    array = numbers(dtype)
    borrowed = BorrowedTensor(make(array))
    assert (borrowed.shape, borrowed.dtype, borrowed.device) == ((2, 3, 4), np.dtype(dtype), (CPU, 0))
    assert borrowed.pointer == array.ctypes.data


def test_borrowed_memory_outlives_its_owner_as_long_as_it_is_borrowed():
    exported = Exported(numbers())
    borrowed = BorrowedTensor(exported)
    gc.collect()
    assert exported.released == 0
    del borrowed
    gc.collect()
    assert exported.released == 1


def test_slices_count_from_their_first_element():
    tensor = torch.arange(24.0).reshape(4, 6)
    borrowed = BorrowedTensor(tensor[2:])
    assert borrowed.pointer == tensor.data_ptr() + 12 * 4
    assert borrowed.shape == (2, 6)


def test_axes_of_length_one_may_have_any_stride():
    assert BorrowedTensor(torch.arange(12.0).reshape(3, 4).t()[:1].t()[:1]).shape == (1, 1)
    assert BorrowedTensor(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(3, 4).t(), "not contiguous"),
        (torch.zeros(3, requires_grad=True), "detached"),
        (torch.zeros(3, dtype=torch.complex64), "no such type"),
        ("a string", "cannot be read"),
    ],
)
def test_what_cannot_be_borrowed_is_refused(tensor, words):
    with pytest.raises(InputError, match=words):
        BorrowedTensor(tensor)
