import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odm_deploy.bitpacking import pack_bits, unpack_bits
from odm_deploy.errors import InputError
from tests.grid_strategies import unhurried


@unhurried
@given(st.integers(1, 8), st.data())
def test_unpacking_undoes_packing_and_wastes_less_than_a_byte(bits, data):
    values = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70)), np.uint8)
    packed = pack_bits(values, bits)
    assert packed.dtype == np.uint8
    assert packed.size == (values.size * bits + 7) // 8
    np.testing.assert_array_equal(unpack_bits(packed, bits, values.size), values)


def test_the_first_value_is_in_the_lowest_bits():
    assert pack_bits(np.array([1, 2, 3, 0], np.uint8), 2).tolist() == [0b00_11_10_01]
    assert pack_bits(np.array([0b101, 0b011, 0b110], np.uint8), 3).tolist() == [0b10_011_101, 0b1]


def test_arrays_are_flattened_in_c_order():
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(unpack_bits(pack_bits(values, 5), 5, 6), np.arange(6))


@pytest.mark.parametrize("count", [7, 11])
def test_a_wrong_number_of_bytes_is_refused(count):
    packed = pack_bits(np.arange(9, dtype=np.uint8), 4)
    with pytest.raises(InputError, match=f"5 bytes for {count} codes of 4 bits"):
        unpack_bits(packed, 4, count)
