import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odm_deploy.errors import InputError
from odm_deploy.quantization.fake_quant import dequantize_weight
from odm_deploy.quantization.weights import WeightCodes, quantize_weight
from tests.grid_strategies import unhurried


def random_weight(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@unhurried
@given(st.integers(2, 8), st.integers(0, 1000), st.booleans(), st.booleans(), st.booleans())
def test_codes_are_symmetric_and_nothing_unclipped_moves_more_than_half_a_step(bits, seed, per_channel, search, power):
    weight = random_weight(seed, 5, 3, 3, 3)
    quantized = quantize_weight(weight, bits, per_channel=per_channel, search_mse=search, power_of_two=power)
    limit = 2 ** (bits - 1) - 1
    assert quantized.codes.shape == weight.shape
    assert quantized.scale.shape == ((5,) if per_channel else (1,))
    assert int(quantized.codes.abs().max()) <= limit
    step = quantized.scale.reshape(-1, 1, 1, 1).expand_as(weight)
    inside = weight.abs() <= step * limit
    assert ((dequantize_weight(quantized.codes, quantized.scale) - weight).abs() <= step * 0.5 * (1 + 1e-5))[
        inside
    ].all()
    assert (quantized.codes.abs() == limit)[~inside].all()


def test_the_largest_weight_gets_the_largest_code():
    quantized = quantize_weight(torch.tensor([[1.0, -4.0], [0.5, 0.2]]), 4)
    assert quantized.codes.tolist() == [[2, -7], [7, 3]]
    torch.testing.assert_close(quantized.scale, torch.tensor([4 / 7, 0.5 / 7]))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_searching_lowers_the_squared_error(bits):
    weight = random_weight(1, 8, 32, 3, 3)
    plain, searched = (quantize_weight(weight, bits, search_mse=flag) for flag in (False, True))
    error = [(dequantize_weight(q.codes, q.scale) - weight).square().flatten(1).sum(1) for q in (plain, searched)]
    assert (error[1] <= error[0]).all()
    assert error[1].sum() < 0.9 * error[0].sum()


@pytest.mark.parametrize("search", [False, True])
def test_power_of_two_scales_are_powers_of_two(search):
    scale = quantize_weight(random_weight(2, 6, 10), 4, search_mse=search, power_of_two=True).scale
    assert (torch.frexp(scale).mantissa == 0.5).all()


@pytest.mark.parametrize("search", [False, True])
def test_a_dead_channel_gets_zero_codes_and_a_usable_scale(search):
    weight = random_weight(3, 3, 4)
    weight[1] = 0
    quantized = quantize_weight(weight, 4, search_mse=search)
    assert quantized.codes[1].tolist() == [0, 0, 0, 0]
    assert float(quantized.scale[1]) > 0


def test_a_channel_of_denormals_gets_a_normal_scale():
    quantized = quantize_weight(torch.full((1, 4), 1e-42), 8)
    assert float(quantized.scale) >= torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(broken):
    with pytest.raises(InputError, match="NaN or infinity"):
        quantize_weight(torch.tensor([[1.0, broken]]), 4)


def test_mid_rise_levels():
    codes = torch.tensor([[-3, -1, 1, 3]], dtype=torch.int8)
    weight = WeightCodes(codes, torch.tensor([0.5]), bits=2, first=-3, step=2)
    assert weight.last == 3
    assert dequantize_weight(weight.codes, weight.scale).tolist() == [[-1.5, -0.5, 0.5, 1.5]]


CODES = torch.zeros(2, 3, dtype=torch.int8)
SCALE = torch.ones(2)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((CODES.float(), SCALE, 4, -8), "torch.float32 of shape"),
        ((CODES[0], SCALE, 4, -8), "not weight codes"),
        ((CODES, SCALE.double(), 4, -8), "torch.float64"),
        ((CODES, torch.ones(3), 4, -8), "for 2 output channels"),
        ((CODES, torch.ones(2, 1), 4, -8), "for 2 output channels"),
        ((CODES, torch.tensor([1.0, 0.0]), 4, -8), "smallest is 0.0"),
        ((CODES, torch.tensor([1.0, -1.0]), 4, -8), "smallest is -1.0"),
        ((CODES, torch.tensor([1.0, float("nan")]), 4, -8), "not a weight scale"),
        ((CODES, SCALE, 1, 0), "1 bits"),
        ((CODES, SCALE, 9, -128), "9 bits"),
        ((CODES, SCALE, 8, -255, 2), "codes -255 to 255"),
        ((CODES, SCALE, 4, -8, 3), "by 3"),
        ((CODES + 8, SCALE, 4, -8), "off their levels"),
        ((CODES - 9, SCALE, 4, -8), "off their levels"),
        ((CODES, SCALE, 2, -3, 2), "off their levels"),
    ],
)
def test_contradictions_are_refused(arguments, reason):
    with pytest.raises(InputError, match=reason):
        WeightCodes(*arguments)
