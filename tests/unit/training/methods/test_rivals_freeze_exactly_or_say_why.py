"""Every rival of ODM v2 trains, and freezes to the same bits or is refused with its reason."""

import numpy as np
import onnxruntime
import pytest
import torch

from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.errors import InputError
from odm_deploy.lowering.lower import lower
from training.distributed import World
from training.loop.step import GradientStep, build_optimizer, follow
from training.methods.base import Step, gradients
from training.methods.registry import method_names
from training.recipe import OptimizerSection

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
        follow(model, optimizer, combined)
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", sorted(set(method_names()) - {"float"}))
def test_every_method_trains_under_autocast_also_on_a_batch_of_one(attach, low, name, images):
    phases = {"ddtb": {"gate_share": 1.0, "gate_start": 2}, "pams": {"first_epoch": 2}}
    method, model = attach(name, 2, **phases.get(name, {}))
    method.watch(model, model.float_network())
    optimizer = build_optimizer(model, OptimizerSection(), method.at_weights_rate)
    step = GradientStep(model, method, World(), autocast=True)
    target = torch.rand(images, 3, 24, 28, generator=torch.Generator().manual_seed(5)) * 255
    for iteration in range(4):
        result = step(low[:images], target, iteration)
        assert all(bool(torch.isfinite(value).all()) for value in result.combined.values())
        follow(model, optimizer, result.combined)
    assert torch.isfinite(result.loss)


def test_minmax_has_no_quantizer_parameters(attach):
    _, model = attach("minmax", 4)
    assert model.quantizer_parameters() == {}
