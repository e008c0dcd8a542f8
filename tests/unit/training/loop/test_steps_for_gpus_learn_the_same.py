"""What makes a step faster on a GPU: work on all layers at once, and channels kept together in memory."""

import pytest
import torch
from torch import nn

from training.acceleration import compile_quantizers
from training.distributed import World
from training.loop.step import GradientStep, build_optimizer, follow
from training.methods.odm_v2 import ClippedWeight
from training.recipe import OptimizerSection

METHODS = [
    ("odm_v2", {}),
    ("odm_v2", {"per_channel": True, "relative_ranges": True}),
    ("odm_v2", {"weight_percentile": 100.0, "clipping": "percentile"}),
    ("odm_v2", {"clipping": "learned", "free": True}),
    ("odm_v1", {}),
    ("lsq", {}),
    ("ddtb", {}),
]


@pytest.fixture
def high():
    """float32 [2, 3, 24, 28] in 0..255."""
    return torch.rand(2, 3, 24, 28, generator=torch.Generator().manual_seed(5)) * 255


@pytest.mark.parametrize("options", [options for name, options in METHODS if name == "odm_v2"], ids=str)
def test_percentiles_looked_up_together_are_those_of_each_layer(attach, options):
    _, model = attach("odm_v2", **options)
    pairs = [(layer.weight_quantizer, layer.weight) for layer in model.layers.values()]
    with torch.no_grad():
        for index, (_, weight) in enumerate(pairs):
            weight.mul_(index + 1)
    alone = [quantizer(weight) for quantizer, weight in pairs]
    with ClippedWeight.looked_up_together(pairs):
        assert all((quantizer.looked_up is None) == (options.get("clipping") == "learned") for quantizer, _ in pairs)
        together = [quantizer(weight) for quantizer, weight in pairs]
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    with torch.no_grad():
        pairs[0][1].mul_(2.0)
    changed = pairs[0][0](pairs[0][1])
    assert options.get("clipping") == "learned" or torch.equal(changed, 2.0 * alone[0])


@pytest.mark.parametrize(("name", "options"), METHODS, ids=str)
def test_projecting_together_is_projecting_each(attach, name, options):
    _, model = attach(name, **options)
    for spoil in (-3.0, 0.0):
        with torch.no_grad():
            for key in model.quantizer_parameters():
                model.parameters()[key].mul_(spoil)
        start = {key: value.clone() for key, value in model.network.state_dict().items()}
        model.project()
        together = {key: value.clone() for key, value in model.network.state_dict().items()}
        model.network.load_state_dict(start)
        for layer in model.layers.values():
            layer.activation.project()
            layer.weight_quantizer.project()
        alone = model.network.state_dict()
        assert any(not torch.equal(start[key], alone[key]) for key in alone)
        assert all(torch.equal(together[key], alone[key]) for key in alone)


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize(("name", "options"), METHODS, ids=str)
@pytest.mark.filterwarnings("ignore")  # torch's compiler touches what torch deprecates, and means it
def test_channels_last_changes_the_layout_and_nothing_else(attach, low, high, name, options, compiled):
    if compiled and name not in ("odm_v2", "lsq"):
        pytest.skip("compiling takes seconds a method")
    method, model = attach(name, **options)
    method.watch(model, model.float_network())
    expected = GradientStep(model, method, World(), autocast=False)(low, high, 0)
    if compiled:
        compile_quantizers(model)
    layouts = []
    for module in model.network.modules():
        if isinstance(module, nn.Conv2d) or module in model.layers.values():
            module.register_forward_pre_hook(
                lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            )
    found = GradientStep(model, method, World(), autocast=False, channels_last=True)(low, high, 0)
    # The pixel shuffle alone writes planes.
    assert layouts.count(False) <= 1 < len(layouts)
    assert found.combined.keys() == expected.combined.keys()
    for key, gradient in expected.combined.items():
        assert found.combined[key].stride() == model.parameters()[key].stride()
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found.combined[key], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-7, msg=key)
    follow(model, build_optimizer(model, OptimizerSection()), found.combined)
