"""ODM v2: its quantizers, which gradient reaches what, and that freezing changes no bit."""

import numpy as np
import pytest
import torch

from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.errors import InputError, UsageError
from training.distributed import World
from training.losses.features import mismatch_loss
from training.methods.base import Step, gradients
from training.methods.odm_v2 import ClippedWeight, OdmV2Options
from training.methods.registry import build_method


def step_of(model, low):
    high = torch.rand(2, 3, low.shape[2] * 2, low.shape[3] * 2, generator=torch.Generator().manual_seed(5)) * 255
    return Step(model, low, high, model(low), 0, World())


def test_weight_bound_is_gamma_times_the_percentile_of_now():
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer = ClippedWeight(4, weight, OdmV2Options())
    with torch.no_grad():
        quantizer.gamma.fill_(0.5)
    for current in (weight, 3 * weight):
        expected = 0.5 * np.percentile(np.abs(current.numpy()), 99)
        assert quantizer.bound(current).item() == pytest.approx(expected, rel=1e-6)


def test_a_learned_bound_lags_behind_the_weights():
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer = ClippedWeight(4, weight, OdmV2Options(clipping="learned"))
    assert quantizer.bound(3 * weight).item() == pytest.approx(np.percentile(np.abs(weight.numpy()), 99), rel=1e-6)


def test_gamma_learns_through_the_bound():
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer = ClippedWeight(2, weight, OdmV2Options())
    quantizer(weight).sum().backward()
    bound = torch.tensor(np.percentile(np.abs(weight.numpy()), 99))
    levels = quantizer(weight).detach()
    inside = weight.abs() <= bound
    expected = torch.where(inside, (levels - weight) / bound, weight.sign()).sum() * bound
    assert quantizer.gamma.grad.item() == pytest.approx(expected.item(), rel=1e-3)


def test_two_bit_weights_have_exactly_four_levels(attach):
    _, model = attach("odm_v2", 2)
    for layer in model.layers.values():
        levels = layer.weight_quantizer(layer.weight)
        bound = layer.weight_quantizer.bound(layer.weight).item()
        assert sorted(set(levels.flatten().tolist())) == pytest.approx([-bound, -bound / 3, bound / 3, bound], rel=1e-6)


def test_eight_bit_weights_have_a_zero_and_fit_int8():
    weight = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = 0.0
    codes = ClippedWeight(8, weight, OdmV2Options()).codes(weight)
    assert codes.step == 1
    assert codes.codes.abs().max() == 127
    assert (codes.codes[0, 0] == 0).all()


def test_ranges_start_at_the_mean_of_percentiles(attach, small_network, low):
    _, model = attach("odm_v2", 4)
    inputs = []
    small_network.body[1].body[0].register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    with torch.no_grad():
        small_network(low)
    lower, upper = model.layers["body.1.body.0"].activation.range
    assert lower.item() == pytest.approx(np.percentile(inputs[0].numpy(), 1), rel=1e-5)
    assert upper.item() == pytest.approx(np.percentile(inputs[0].numpy(), 99), rel=1e-5)


def test_quantizer_parameters_follow_the_reconstruction_alone(attach, low):
    """A huge mismatch weight moves every weight's gradient and no gamma's, l's or u's."""
    _, model = attach("odm_v2", 2)
    results = []
    for weight in (0.0, 1e6):
        method = build_method({"name": "odm_v2", "mismatch_weight": weight})
        with model.recording():
            results.append(gradients(method, step_of(model, low)).combined)
    quantizer = model.quantizer_parameters()
    assert len(quantizer) == 3 * len(model.layers)
    for name, plain in results[0].items():
        same = torch.equal(plain, results[1][name])
        behind_every_quantizer = name.startswith(("body.2", "tail", "body.1.body.2"))
        assert same == (name in quantizer or behind_every_quantizer), name


def test_mismatch_is_the_sum_of_frobenius_norms():
    records = [(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0])), (torch.tensor([1.0]), torch.tensor([3.0]))]
    assert mismatch_loss(records, World()).item() == pytest.approx(5.0 + 2.0)


def test_lambda_may_be_meant_for_another_batch(attach, low):
    """A batch of a quarter of the pixels takes twice lambda."""
    _, model = attach("odm_v2", 2)
    losses = []
    for pixels in (0, 4 * 2 * 12 * 14):
        method = build_method({"name": "odm_v2", "mismatch_pixels": pixels})
        with model.recording():
            losses.append(method.auxiliary_loss(step_of(model, low)).item())
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-6)


def test_mismatch_holds_the_levels_fixed(attach, low):
    _, model = attach("odm_v2", 2)
    with model.recording():
        model(low)
        loss = mismatch_loss(model.records(), World())
    last = list(model.layers.values())[-1].activation
    # Nothing but the levels depends on the last range.
    assert torch.autograd.grad(loss, [last.lower], allow_unused=True)[0] is None


def test_gamma_starts_where_the_squared_error_is_smallest():
    """Against a fine search by brute force, per channel, with numpy."""
    weight = torch.randn(5, 8, 3, 3, generator=torch.Generator().manual_seed(2))
    quantizer = ClippedWeight(2, weight, OdmV2Options(per_channel=True, gamma_init="mse"))
    for row, gamma in zip(weight.numpy().reshape(5, -1), quantizer.gamma.tolist(), strict=True):
        fine = np.append(np.linspace(0.1, 1.2, 111), gamma)
        bounds = np.percentile(np.abs(row), 99) * fine
        levels = np.array([-1.0, -1 / 3, 1 / 3, 1.0]) * bounds[:, None]
        errors = (np.abs(row[None, :, None] - levels[:, None, :]).min(axis=2) ** 2).mean(axis=1)
        assert errors[-1] < 1.02 * errors.min()
        assert errors[-1] < 0.9 * errors[90]  # where gamma = 1


OPTIONS = [
    {},
    {"weight_levels": "mid_tread"},
    {"per_channel": True, "relative_ranges": True, "range_init": "mse"},
    {"free": True},
    {"clipping": "learned", "percentile_of": "signed"},
    {"per_channel": True, "gamma_init": "mse"},
    {"clipping": "learned", "gamma_init": "mse"},
    {"clipping": "percentile", "range_init": "minmax"},
]


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_freezing_changes_no_bit(attach, nudge, low, tmp_path, bits, options):
    _, model = attach("odm_v2", bits, **options)
    nudge(model)
    model.network.eval()
    with torch.no_grad():
        trained = model(low)
    frozen = model.freeze({})
    assert torch.equal(frozen(low), trained)
    save_model(frozen, tmp_path / "model.pt")
    assert torch.equal(load_model(tmp_path / "model.pt")(low), trained)


@pytest.mark.parametrize("update", ["tensor", "global", "element", "naive"])
def test_every_update_rule_gives_every_parameter_a_finite_gradient(attach, low, update):
    method, model = attach("odm_v2", 3, update=update)
    with model.recording():
        combined = gradients(method, step_of(model, low)).combined
    assert set(combined) == set(model.parameters())
    assert all(bool(torch.isfinite(gradient).all()) for gradient in combined.values())


def test_a_teacher_takes_its_share_of_the_reconstruction_loss(attach, small_network, low):
    method, model = attach("odm_v2", 2, teacher_weight=0.25)
    method.watch(model, small_network)
    step = step_of(model, low)
    with torch.no_grad():
        taught = small_network(low)
    to_target, to_teacher = ((step.output - other).abs().mean().item() for other in (step.high, taught))
    assert to_target != pytest.approx(to_teacher, rel=0.1)
    assert method.reconstruction_loss(step).item() == pytest.approx(0.75 * to_target + 0.25 * to_teacher, rel=1e-6)


def test_the_teacher_stays_what_it_was_while_the_model_learns(attach, small_network, low):
    method, model = attach("odm_v2", 2, teacher_weight=1.0)
    method.watch(model, small_network)
    before = method.reconstruction_loss(step_of(model, low)).item()
    with torch.no_grad():
        output = model(low)
        for parameter in model.parameters().values():
            parameter.zero_()
    step = Step(model, low, torch.zeros_like(output), output, 0, World())
    assert method.reconstruction_loss(step).item() == before


def test_a_teacher_takes_a_finite_share_of_the_loss():
    with pytest.raises(InputError, match=r"method.teacher_weight = nan; write a finite number"):
        build_method({"name": "odm_v2", "teacher_weight": float("nan")})


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_a_teacher_cannot_take_more_than_everything(weight):
    with pytest.raises(UsageError, match=f"method.teacher_weight = {weight}"):
        build_method({"name": "odm_v2", "teacher_weight": weight})
