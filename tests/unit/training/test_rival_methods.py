"""Each rival's quantizer against hand-computed values and closed forms, its refusals, and its exact freezing."""

import numpy as np
import onnxruntime
import pytest
import torch
from scipy import integrate, optimize, stats

from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.errors import InputError
from odm_deploy.lowering.lower import lower
from training.distributed import World
from training.methods.base import Step, gradients
from training.methods.daq import GAUSSIAN_STEPS, gaussian_quantize
from training.methods.odm_v1 import quantized_offset
from training.methods.pams import MaxScale
from training.methods.registry import method_names
from training.quantizers.learned_step import LearnedStep
from training.quantizers.straight_through.step import rounding_derivative, step_quantize

EXPORTABLE = [
    ("odm_v1", {}),
    ("odm_v1", {"offset_share": 0.0}),
    ("odm_v1", {"offset_share": 1.0}),
    ("pams", {}),
    ("ddtb", {"gate_share": 0.0}),
    ("quantsr", {}),
    ("quantsr", {"shift": False}),
    ("quantsr", {"shift": False, "per_channel": True}),
    ("lsq", {}),
    ("lsq", {"per_channel": True}),
    ("minmax", {}),
    ("minmax", {"per_channel": False, "range_init": "percentile"}),
]
REFUSED = [
    ("pams", {"faithful": True}, "faithful"),
    ("ddtb", {}, "remove_gates=true"),
    ("daq", {}, "do not factor out"),
]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("name", "options"), EXPORTABLE, ids=str)
def test_freezing_changes_no_bit(attach, nudge, low, tmp_path, bits, name, options):
    method, model = attach(name, bits, **options)
    assert method.why_not_exportable() is None
    nudge(model)
    give_offsets(model)
    model.network.eval()
    with torch.no_grad():
        trained = model(low)
    save_model(model.freeze({}), tmp_path / "model.pt")
    assert torch.equal(load_model(tmp_path / "model.pt")(low), trained)


def give_offsets(model):
    """Shifts and gains that differ from channel to channel, where there are any: they start at 0 and 1."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.parameters().items():
            if name.endswith((".shift", ".gain")):
                parameter.add_(torch.rand(parameter.shape, generator=generator) - 0.5)


@pytest.mark.parametrize(("name", "bits"), [("odm_v1", 2), ("odm_v1", 4), ("quantsr", 2), ("quantsr", 8)])
def test_offsets_run_as_integers_in_engines(attach, low, bits, name):
    """Two constants in front of the quantizer: the exported graph computes what the frozen model does."""
    _, model = attach(name, bits)
    give_offsets(model)
    frozen = model.freeze({})
    assert any(layer.offsets for layer in frozen.layers.values())
    session = onnxruntime.InferenceSession(lower(frozen).SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: low.numpy()})
    apart = np.abs(output - frozen(low).numpy())
    # A code may flip where a float32 sum came out differently; most values are the same.
    assert np.median(apart) < 1e-3
    assert apart.max() < 20


@pytest.mark.parametrize(("name", "options", "telling"), REFUSED, ids=str)
def test_what_no_integer_grid_can_hold_is_refused_with_its_reason(attach, name, options, telling):
    method, model = attach(name, 4, **options)
    assert telling in method.why_not_exportable()
    with pytest.raises(InputError, match="cannot freeze body"):
        model.freeze({})


@pytest.mark.parametrize("name", sorted(set(method_names()) - {"float"}))
def test_every_method_trains_every_parameter_it_uses(attach, low, name):
    method, model = attach(name, 3)
    method.watch(model, model.float_network())
    target = torch.rand(2, 3, 24, 28, generator=torch.Generator().manual_seed(5)) * 255
    losses = []
    optimizer = torch.optim.Adam(model.parameters().values(), lr=1e-3)
    for iteration in range(12):
        method.begin_iteration(model, iteration)
        with model.recording():
            result = gradients(method, Step(model, low, target, model(low), iteration, World()))
        loss, combined = result.loss, result.combined
        assert all(bool(torch.isfinite(value).all()) for value in combined.values())
        convolutions = {key for key in model.parameters() if key.endswith((".weight", ".bias")) and "gate" not in key}
        assert convolutions <= set(combined)
        for key, parameter in model.parameters().items():
            parameter.grad = combined.get(key)
        optimizer.step()
        model.project()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_pams_levels_by_hand():
    quantizer = MaxScale(3, faithful=True)
    with torch.no_grad():
        quantizer.alpha.fill_(6.0)
    # Q = 3, step 2: -6 -4 -2 0 2 4 6.
    x = torch.tensor([-99.0, -7.5, -3.1, 0.9, 1.1, 5.2, 99.0])
    assert quantizer(x).tolist() == [-6.0, -6.0, -4.0, 0.0, 2.0, 6.0, 6.0]
    deployable = MaxScale(3, faithful=False)
    with torch.no_grad():
        deployable.alpha.fill_(6.0)
    assert deployable(x).tolist() == [-8.0, -8.0, -4.0, 0.0, 2.0, 6.0, 6.0]


def test_pams_gradient_is_the_closed_form():
    quantizer = MaxScale(3, faithful=True)
    with torch.no_grad():
        quantizer.alpha.fill_(6.0)
    x = torch.tensor([-9.0, 0.9, 5.2, 9.0], requires_grad=True)
    weights = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    (quantizer(x) * weights).sum().backward()
    assert x.grad.tolist() == [0.0, 10.0, 100.0, 0.0]
    expected = -1.0 + 10 * (0.0 - 0.9) / 6 + 100 * (6.0 - 5.2) / 6 + 1000.0
    assert quantizer.alpha.grad.item() == pytest.approx(expected, rel=1e-5)


def test_pams_starts_at_the_mean_of_the_largest_magnitudes():
    quantizer = MaxScale(4, faithful=False)
    quantizer.observe(torch.tensor([[[[1.0, -3.0]]], [[[2.0, 5.0]]]]))
    quantizer.initialize()
    assert quantizer.alpha.item() == 4.0


def test_lsq_gradient_is_equation_3():
    x = torch.tensor([-9.0, 0.4, 1.6, 9.0], requires_grad=True)
    step = torch.tensor(1.0, requires_grad=True)
    weights = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    (step_quantize(x, step, 4, 3, gradient_scale=0.5) * weights).sum().backward()
    assert step.grad.item() == pytest.approx(0.5 * (-4.0 + 10 * (0 - 0.4) + 100 * (2 - 1.6) + 3000.0), rel=1e-5)
    assert x.grad.tolist() == [0.0, 10.0, 100.0, 0.0]


def test_lsq_is_unsigned_after_a_relu_and_starts_at_twice_the_mean():
    quantizer = LearnedStep(4, scale_gradients=True)
    x = torch.rand(2, 3, 4, 4)
    quantizer.observe(x)
    quantizer.initialize()
    assert (quantizer.negative_codes, quantizer.positive_codes) == (0, 15)
    assert quantizer.step.item() == pytest.approx(2 * x.mean().item() / 15**0.5, rel=1e-5)
    quantizer.observe(x - 0.5)
    quantizer.initialize()
    assert (quantizer.negative_codes, quantizer.positive_codes) == (8, 7)


def test_quantsr_derivative_is_the_formula_and_averages_to_one():
    quotient = torch.linspace(0, 1, 100001, dtype=torch.float64)[:-1]
    slope = rounding_derivative(quotient, "tanh")
    assert slope.mean().item() == pytest.approx(1.0, abs=1e-4)
    at_a_half = 1 / (2 * np.tanh(0.5))
    assert rounding_derivative(torch.tensor([0.5, -0.5, 3.5]), "tanh").tolist() == pytest.approx([at_a_half] * 3)


def test_quantsr_shifts_each_channel(attach):
    _, model = attach("quantsr", 4)
    quantizer = next(iter(model.layers.values())).activation
    with torch.no_grad():
        quantizer.shift.copy_(torch.arange(6.0))
    moved = quantizer.transform(torch.zeros(1, 6, 2, 2))
    assert moved[0, :, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_daq_steps_are_optimal_for_a_gaussian(bits):
    """Independent: minimise the squared error of the mid-rise quantizer of a unit normal numerically."""
    half = 2 ** (bits - 1)

    def error(step):
        edges = [step * k for k in range(half)] + [np.inf]
        parts = [
            integrate.quad(lambda x, level=(k + 0.5) * step: (x - level) ** 2 * stats.norm.pdf(x), *edges[k : k + 2])[0]
            for k in range(half)
        ]
        return 2 * sum(parts)

    best = optimize.minimize_scalar(error, bounds=(0.05, 2.0), method="bounded", options={"xatol": 1e-6}).x
    assert GAUSSIAN_STEPS[bits] == pytest.approx(best, rel=2e-3)


def test_daq_levels_by_hand():
    x = torch.tensor([-9.0, -0.1, 0.1, 1.2, 9.0])
    step = GAUSSIAN_STEPS[2] * 2.0
    levels = gaussian_quantize(x, torch.tensor(0.0), torch.tensor(2.0), 2)
    assert levels.tolist() == pytest.approx([-1.5 * step, -0.5 * step, 0.5 * step, 0.5 * step, 1.5 * step])


def test_daq_uses_the_statistics_of_each_image_and_channel(attach):
    _, model = attach("daq", 4)
    quantizer = next(iter(model.layers.values())).activation
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scaled = x * torch.tensor([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1) + 5.0
    expected = quantizer(x) * torch.tensor([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1) + 5.0
    assert torch.allclose(quantizer(scaled), expected, rtol=1e-3, atol=1e-3)


def test_ddtb_gates_scale_the_range_of_each_image(attach, low):
    method, model = attach("ddtb", 4, gate_share=1.0, gate_start=10)
    quantizer = next(iter(model.layers.values())).activation
    x = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0)) * 50
    method.begin_iteration(model, 9)
    static = quantizer(x)
    assert len(static.unique()) <= 16
    method.begin_iteration(model, 10)
    dynamic = quantizer(x)
    lower, upper = (bound.item() for bound in quantizer.range)
    factors = 2 * torch.sigmoid(quantizer.gate(x))
    for image in range(2):
        assert len(dynamic[image].unique()) <= 16
        width = upper * factors[image, 0].item() - lower * factors[image, 1].item()
        levels = dynamic[image].unique()
        assert torch.diff(levels).min().item() == pytest.approx(width / 15, rel=1e-3)


def test_ddtb_gates_become_the_constants_they_were_on_average(attach, low):
    method, model = attach("ddtb", 4, gate_share=1.0, gate_start=0, remove_gates=True)
    assert method.why_not_exportable() is None
    method.begin_iteration(model, 0)
    quantizer = next(iter(model.layers.values())).activation
    lower, upper = (bound.item() for bound in quantizer.range)
    for _ in range(600):
        quantizer(low.repeat(1, 2, 1, 1))
    factors = 2 * torch.sigmoid(quantizer.gate(low.repeat(1, 2, 1, 1))).mean(0)
    assert "4 layers" in method.simplify(model)
    assert quantizer.range[1].item() == pytest.approx(upper * factors[0].item(), rel=0.02)
    assert quantizer.range[0].item() == pytest.approx(lower * factors[1].item(), rel=0.02)
    model.network.eval()
    with torch.no_grad():
        trained = model(low)
    assert torch.equal(model.freeze({})(low), trained)


def test_ddtb_warm_up_adds_the_squared_logits(attach, low):
    method, model = attach("ddtb", 4, gate_share=1.0, gate_start=10)
    target = torch.zeros(2, 3, 24, 28)
    losses = []
    for iteration in (0, 10):
        step = Step(model, low, target, model(low), iteration, World())
        losses.append(method.reconstruction_loss(step).item())
    with model.recording():
        model(low)
        logits = [
            layer.activation.gate(x) for layer, (x, _) in zip(model.layers.values(), model.records(), strict=True)
        ]
    expected = np.mean([logit.square().mean().item() for logit in logits])
    assert losses[0] - losses[1] == pytest.approx(expected, abs=1e-4)


def test_odm_v1_gives_offsets_to_the_layers_whose_channels_differ_most(attach):
    _, model = attach("odm_v1", 4, offset_share=0.5)
    quantizers = [layer.activation for layer in model.layers.values()]
    for flag, spread in (("has_shift", "mean_spread"), ("has_gain", "deviation_spread")):
        ranked = sorted(quantizers, key=lambda q: getattr(q, spread), reverse=True)
        assert [getattr(q, flag).is_set for q in ranked] == [True, True, False, False]


def test_odm_v1_offsets_are_four_bit_symmetric():
    offset = torch.tensor([7.0, -3.4, 0.4, -0.6], requires_grad=True)
    levels = quantized_offset(offset)
    assert levels.tolist() == [7.0, -3.0, 0.0, -1.0]
    levels.sum().backward()
    assert offset.grad.tolist() == [1.0, 1.0, 1.0, 1.0]


def test_odm_v1_transforms_by_shift_then_gain(attach):
    _, model = attach("odm_v1", 4, offset_share=1.0)
    quantizer = next(iter(model.layers.values())).activation
    with torch.no_grad():
        quantizer.shift.fill_(2.0)
        quantizer.gain.fill_(3.0)
    assert quantizer.transform(torch.ones(1, 6, 2, 2)).unique().tolist() == [9.0]


def test_percentile_weights_are_zero_snapped_and_asymmetric(attach):
    _, model = attach("odm_v1", 3, offset_share=0.0)
    layer = next(iter(model.layers.values()))
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1.0, 3.0, layer.weight.numel()).reshape(layer.weight.shape))
    codes = layer.weight_quantizer.codes(layer.weight)
    low_bound, high_bound = np.percentile(layer.weight.detach().numpy(), [1, 99])
    assert codes.scale.item() == pytest.approx((high_bound - low_bound) / 7, rel=1e-5)
    assert codes.first == round(low_bound / codes.scale.item())
    assert 0 in codes.codes


def test_minmax_has_no_quantizer_parameters(attach):
    _, model = attach("minmax", 4)
    assert model.quantizer_parameters() == set()
