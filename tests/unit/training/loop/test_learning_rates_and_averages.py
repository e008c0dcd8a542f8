import pytest
import torch

from odm_deploy.errors import UsageError
from training.distributed import World
from training.loop.step import MovingAverage, build_optimizer, rate_factor, set_rates
from training.methods.ddtb import Ddtb
from training.recipe import OptimizerSection


def test_the_rate_halves_every_so_many_iterations():
    settings = OptimizerSection(schedule="halving", halve_every=100)
    assert [rate_factor(settings, i, 1000) for i in (0, 99, 100, 250)] == [1.0, 1.0, 0.5, 0.25]


def test_cosine_starts_at_one_and_ends_near_zero():
    settings = OptimizerSection(schedule="cosine")
    assert rate_factor(settings, 0, 100) == 1.0
    assert rate_factor(settings, 50, 100) == pytest.approx(0.5)
    assert rate_factor(settings, 99, 100) < 1e-3


def test_warmup_grows_linearly():
    settings = OptimizerSection(schedule="constant", warmup=4)
    assert [rate_factor(settings, i, 100) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_quantizers_have_their_own_rate(attach):
    _, model = attach("odm_v2", 4)
    optimizer = build_optimizer(model, OptimizerSection(learning_rate=1e-4, range_learning_rate=1e-3))
    set_rates(optimizer, 0.5)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    quantizer = model.quantizer_parameters()
    for name, parameter in model.parameters().items():
        assert rate_of[id(parameter)] == (5e-4 if name in quantizer else 5e-5)


def test_each_kind_of_quantizer_parameter_may_have_its_own_rate(attach):
    def rates(name, at_weights_rate=frozenset(), **settings):
        _, model = attach(name, 4)
        optimizer = build_optimizer(model, OptimizerSection(**settings), at_weights_rate)
        rate_of = {id(p): group["rate"] for group in optimizer.param_groups for p in group["params"]}
        return {kind: rate_of[id(model.parameters()[key])] for key, kind in model.quantizer_parameters().items()}

    lsq = rates("lsq", range_learning_rate=1e-2, rates={"weight_steps": 5e-4})
    assert lsq == {"steps": 1e-2, "weight_steps": 5e-4}
    assert rates("ddtb", Ddtb.at_weights_rate, learning_rate=3e-4) == {"ranges": 1e-3, "gates": 3e-4}
    assert rates("odm_v1") == {"ranges": 1e-3, "offsets": 1e-3}
    with pytest.raises(UsageError, match=r"optimizer\.rates\.gates"):
        rates("odm_v2", rates={"gates": 1e-3})


def test_the_average_forgets_its_start(attach):
    _, model = attach("odm_v2", 4)
    average = MovingAverage(model, 0.999)
    with torch.no_grad():
        for parameter in model.parameters().values():
            parameter.fill_(2.0)
    for iteration in range(200):
        average.update(model, iteration)
    weights = average.weights(model)
    for name in model.parameters():
        assert torch.allclose(weights[name], torch.tensor(2.0), atol=0.02), name


def test_without_decay_the_average_is_the_model(attach):
    _, model = attach("odm_v2", 4)
    average = MovingAverage(model, 0.0)
    average.update(model, 0)
    state = model.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in average.weights(model).items())


def test_a_batch_that_does_not_split_evenly_is_refused():
    assert World(1, 4).share(8) == slice(2, 4)
    with pytest.raises(UsageError, match="over 3 processes"):
        World(0, 3).share(8)
