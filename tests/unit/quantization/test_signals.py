"""Signals: which tensors become ones, what they compute, and what calibration makes of them."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.networks.base import Region
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization import range_fitting
from odm_deploy.quantization.contrast_chart import contrast_chart
from odm_deploy.quantization.exact.trace import integer_program
from odm_deploy.quantization.float_form import float_form
from odm_deploy.quantization.model import QuantizedModel, freeze, tapped
from odm_deploy.quantization.observers import observe
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.quantization.ranges import RangeMethod, choose_grid
from odm_deploy.quantization.signal_calibration import SignalObservers
from odm_deploy.quantization.signal_plan import plan_signals
from odm_deploy.quantization.signals import attach, detach, replace_layer, with_signals
from tests.factories import random_images, tiny_network

GRID = Grid.from_range(-30.0, 40.0, 8)


def planned(network, profile="integer"):
    policy = QuantizationPolicy.parse(profile, "8")
    return plan_signals(network, policy.select(network).keys())


def integer_model(network, bits="8", **others) -> QuantizedModel:
    images = [torch.from_numpy(random_images(24, 20, seed=seed)) for seed in range(3)]
    return calibrate(network, images, QuantizationPolicy.parse("integer", bits, **others))[0]


def test_edsr_has_its_residual_stream_and_each_end_of_a_block_on_grids():
    plan = planned(tiny_network())
    names = [signal.name for signal in plan.signals]
    assert names == [
        *("head.0.output", "body.0.body.2.output", "body.0.sum.output"),
        *("body.1.body.2.output", "body.2.output", "tail.1.output"),
    ]
    # One layer alone reads the last block: its own grid serves.
    assert "body.1.sum.output" not in names
    assert plan.feeds == {"body.0.body.0": "head.0.output", "body.1.body.0": "body.0.sum.output"}
    assert [signal.name for signal in plan.signals if signal.is_image] == ["tail.1.output"]


def test_with_fused_a_convolution_that_a_sum_alone_reads_gives_it_floats():
    network = tiny_network()
    plan = plan_signals(network, planned(network).feeds.keys() | {"body.0.body.2", "body.1.body.2"}, fused=True)
    named = {signal.name for signal in plan.signals}
    assert not {"body.0.body.2.output", "body.1.body.2.output"} & named
    # The other term is read by others, too.
    assert {"head.0.output", "body.0.sum.output"} <= named
    layers = QuantizationPolicy.parse("engine", "8").select(network).keys()
    fused = {signal.name for signal in plan_signals(network, layers, fused=True).signals}
    assert fused == {"head.0.output", "body.0.sum.output", "tail.1.output"}
    activations = build_network("srresnet", {"scale": 2, "features": 8, "blocks": 2}).eval()
    layers = QuantizationPolicy.parse("engine", "8").select(activations).keys()
    names = {signal.name for signal in plan_signals(activations, layers, fused=True).signals}
    # A pixel shuffle stands between the upsampler's convolution and its function.
    assert names == {"relu.output", "residual.0.sum.output", "upscale.0.output", "conv_output.output"}


def small_rdn():
    return build_network("rdn", {"scale": 2, "blocks": 2, "convolutions": 2, "features": 8, "growth": 8}).eval()


def test_what_rdn_joins_lies_on_one_grid_which_readers_of_it_share():
    plan, model = planned(small_rdn()), integer_model(small_rdn())
    rectified = [signal.name for signal in plan.signals if signal.is_rectified]
    assert rectified == [f"RDBs.{d}.convs.{c}.conv.0.output" for d in range(2) for c in range(2)]
    first = ["SFENet2.output", *rectified[:2]]
    # The fusion joins the outputs of both blocks.
    second = ["RDBs.0.sum.output", *rectified[2:], "RDBs.1.sum.output"]
    assert [list(group) for group in plan.alike] == [first, second]
    for group, layers in ((first, "RDBs.0"), (second, "RDBs.1")):
        readers = [f"{layers}.convs.0.conv.0", f"{layers}.convs.1.conv.0", f"{layers}.LFF"]
        assert {plan.feeds[layer] for layer in readers} == {group[0]}
        assert len({model.grids[name] for name in (*group, *readers)}) == 1
    assert plan.feeds["GFF.0"] == second[0]


def test_a_signal_follows_what_the_module_gives_and_leaves_with_it():
    network = tiny_network()
    image = torch.from_numpy(random_images(12, 10))
    plain = network(image)
    attach(network, "head.0.output", nn.Identity())
    assert torch.equal(network(image), plain)
    with_signals(network, {"head.0.output": GRID})
    copied = copy.deepcopy(network)
    assert not torch.equal(network(image), plain)
    assert torch.equal(copied(image), network(image))
    replace_layer(copied, "head.0", copy.deepcopy(tiny_network().head[0]))
    assert torch.equal(copied(image), network(image))
    detach(network.head[0])
    assert torch.equal(network(image), plain)
    assert list(network.state_dict()) == list(tiny_network().state_dict())


@pytest.mark.parametrize("name", ["head.0", "nothing.output", "output"])
def test_what_is_no_signal_is_refused(name):
    with pytest.raises(InputError, match=f"no signal {name}"):
        attach(tiny_network(), name, nn.Identity())


def test_layers_that_read_one_signal_share_its_grid_where_widths_agree():
    eight, four = integer_model(tiny_network()), integer_model(tiny_network(), "4")
    for layer, signal in planned(tiny_network()).feeds.items():
        assert eight.layers[layer].grid == eight.signals[signal].grid
        assert (four.layers[layer].grid.bits, four.signals[signal].grid.bits) == (4, 8)


def test_the_last_signal_is_the_image_so_that_8_bit_images_lose_nothing_by_it():
    model = integer_model(tiny_network())
    grid = model.signals["tail.1.output"].grid
    assert grid == model.network.output_grid
    image = torch.from_numpy(random_images(16, 16, seed=9))
    with_it = model(image)
    detach(model.network.get_submodule("tail.1"))
    without = model(image).clamp(0, 255)
    # Halves are rounded to even codes by the one and to even values by the other.
    halves = without.frac() == 0.5
    assert halves.sum() < 5
    assert torch.equal(with_it[~halves], without.round()[~halves])


def test_every_signal_is_tapped_and_moves_the_output():
    model = integer_model(tiny_network())
    seen = {}
    with tapped(model, lambda name: lambda x: seen.setdefault(name, x)):
        model(torch.from_numpy(random_images(12, 10)))
    assert set(seen) == set(model.grids) == {*model.layers, *model.signals}


class Functional(nn.Module):
    """A network whose sums and rectifiers are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.last = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        x = F.relu(self.second(x)) + x
        return F.pixel_shuffle(self.last(F.leaky_relu(self.third(x))), 2)


def test_a_network_from_elsewhere_has_the_outputs_of_its_convolutions_on_grids():
    torch.manual_seed(3)
    network = foreign_network(Functional(), input_range=255.0)
    plan = planned(network)
    found = {signal.name: (signal.is_rectified, signal.is_image) for signal in plan.signals}
    assert found["net.second.output"] == (True, False)
    assert found["net.third.output"] == (False, False)
    assert found["net.last.output"] == (False, True)


def test_freezing_takes_the_signals_it_is_given_and_no_others():
    model = integer_model(tiny_network())
    again = freeze(model.network, {}, signals={"head.0.output": GRID})
    assert {name: signal.grid for name, signal in again.signals.items()} == {"head.0.output": GRID}


class Doubling(nn.Module):
    """A convolution whose own code adds, as quantizers in training do."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x):
        """Twice, and half of it."""
        y = self.conv(x)
        return (y + y) / 2


def test_a_sum_that_no_module_makes_has_a_place_whatever_replaces_the_layers_around_it():
    torch.manual_seed(3)
    network, image = foreign_network(Functional(), input_range=255.0), torch.from_numpy(random_images(12, 10))
    plain, seen = network(image), []
    with_signals(network, {"net.add.output": GRID})
    quantizer = network.get_submodule("net.add.output")
    quantizer.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    changed = network(image)
    replace_layer(network, "net.second", Doubling(network.net.second))
    assert torch.equal(network(image), changed)
    assert len(seen) == 2
    assert not torch.equal(changed, plain)
    with pytest.raises(RuntimeError):
        network(image[:, :2])
    assert torch.equal(network(image), changed)
    with_signals(network, {})
    assert torch.equal(network(image), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["net.cat.output", "net.first.add.part", "nowhere.add.output", "net.first.output.add"])
def test_what_is_no_place_of_an_operation_is_refused(name):
    with pytest.raises(InputError, match="no signal"):
        attach(foreign_network(Functional(), input_range=255.0), name, nn.Identity())


def test_the_proof_refuses_places_that_its_trace_does_not_see():
    model = freeze(foreign_network(Functional(), input_range=255.0), {}, signals={"net.add.output": GRID})
    with pytest.raises(InputError, match="grids of operations that no module makes"):
        integer_program(model)


@pytest.mark.parametrize("name", ["edsr", "rdn", "srresnet"])
@torch.no_grad()
def test_a_head_of_8_bits_reads_8_bit_images_as_they_are(name):
    others = {} if name == "edsr" else {"convolutions": 2, "growth": 8} if name == "rdn" else {"input_range": 1.0}
    network = build_network(name, {"scale": 2, "blocks": 2, "features": 8, **others}).eval()
    model = integer_model(network, head="8")
    head = next(iter(model.layers))
    assert network.region_of(head) is Region.HEAD
    arrived = []
    with tapped(model, lambda layer: lambda x: arrived.append(x) or x if layer == head else x):
        image = torch.from_numpy(
            np.arange(256, dtype=np.float32).reshape(1, 1, 16, 16).repeat(3, 1).repeat(3, 2).repeat(3, 3)
        )
        output = model(image)
    grid = model.layers[head].grid
    assert np.array_equal(grid.quantize(arrived[0].numpy()), image.numpy())
    # What is subtracted before the first layer is made up for behind it, but for padded borders.
    inner = (..., slice(32, -32), slice(32, -32))
    expected, plain = network(image)[inner], integer_model(network)(image)[inner]
    lost, usual = ((found - expected).abs().mean().item() for found in (output[inner], plain))
    assert lost < 2.0 * usual
    assert torch.allclose(float_form(network, model)(image)[inner], expected, atol=1e-2)


class Interrupted(Functional):
    """As by Ctrl-C, in the middle of a run."""

    def forward(self, x):
        if self.training:
            raise KeyboardInterrupt
        return super().forward(x)


def test_nothing_is_left_of_a_run_that_an_interruption_ends():
    """Torch calls no hooks behind it, and its compiler traced what went on in the thread."""
    model = freeze(foreign_network(Interrupted(), input_range=255.0), {}, signals={"net.add.output": GRID})
    image = torch.from_numpy(random_images(16, 16, seed=1))
    expected = model(image)
    model.network.train()
    with pytest.raises(KeyboardInterrupt):
        model(image)
    assert not _get_current_function_mode_stack()
    model.network.eval()
    assert torch.equal(model(image), expected)


def test_nothing_is_left_of_calibration_that_ends_its_runs_early():
    integer_model(foreign_network(Functional(), input_range=255.0))
    assert not _get_current_function_mode_stack()


def grids_of_signals(profile):
    network = tiny_network()
    network.eval()
    with SignalObservers(network, planned(network, profile)) as observers, torch.no_grad():
        network(torch.from_numpy(random_images(24, 20)))
    method = RangeMethod.MSE
    dyadic = profile == "exact-integer"
    best = {
        name: choose_grid(watched.observer, 8, method, power_of_two=dyadic)
        for name, watched in observers._watched.items()
    }
    return best, observers.grids(8, method, power_of_two=dyadic)


def test_grids_leave_room_for_what_other_images_bring():
    best, chosen = grids_of_signals("integer")
    # The image's own grid is known beforehand.
    assert chosen.pop("tail.1.output").scale == 1.0
    for name, grid in chosen.items():
        assert grid.scale == pytest.approx(10 / 9 * best[name].scale, rel=0.01)


def test_a_power_of_two_has_such_room():
    best, chosen = grids_of_signals("exact-integer")
    del chosen["tail.1.output"]
    assert {name: grid.scale for name, grid in chosen.items()} == {name: best[name].scale for name in chosen}


AT_ANY_PRICE = -1e9
"""Of lettering: what photographs lose by it does not count."""


def faint_images(first: int = 48) -> list[torch.Tensor]:
    """Six images with a tenth of the contrasts there are, the first of another height."""
    sizes = [first, 48, 48, 48, 48, 48]
    return [100 + 0.1 * torch.from_numpy(random_images(size, 48, seed=seed)) for seed, size in enumerate(sizes)]


@pytest.mark.parametrize("first", [48, 40], ids=["equal_parts", "the_first_is_smaller"])
@pytest.mark.parametrize(("profile", "bits"), [("integer", "8"), ("deploy", "4"), ("paper", "8")])
def test_grids_leave_room_for_black_and_white_beside_each_other_where_no_image_shows_them(
    profile, bits, first, monkeypatch
):
    monkeypatch.setattr(range_fitting, "LETTERING_FOR_PHOTOGRAPHS", AT_ANY_PRICE)
    network = tiny_network()
    faint = faint_images(first)
    # Equalized channels have other ranges than the float network's.
    settings = CalibrationSettings(equalize=False)
    model = calibrate(network, faint, QuantizationPolicy.parse(profile, bits), settings)[0]
    # Layers that read a signal share its grid, which goes by what was seen.
    signals = planned(network).feeds if model.signals else ()
    alone = [name for name, layer in model.layers.items() if name not in signals and layer.grid.bits == 8]
    assert alone
    for name, seen in observe(network, faint, alone).items():
        grid = model.layers[name].grid
        assert max(-grid.lower, grid.upper) > 2 * max(-seen.minimum, seen.maximum), name


def test_lettering_counts_where_it_gains_more_than_photographs_lose(monkeypatch):
    network, images = tiny_network(), faint_images()
    # What colours need is another question.
    monkeypatch.setattr(range_fitting, "TINT", math.inf)
    price = range_fitting.LETTERING_FOR_PHOTOGRAPHS

    def grids(price):
        monkeypatch.setattr(range_fitting, "LETTERING_FOR_PHOTOGRAPHS", price)
        model = calibrate(network, images, QuantizationPolicy.parse("paper", "8"))[0]
        return {name: layer.grid for name, layer in model.layers.items()}

    photographs, both = grids(math.inf), grids(AT_ANY_PRICE)
    assert photographs != both
    # Of these they would lose a bit and more.
    assert grids(price) == photographs


def test_powers_of_two_leave_room_for_it_too():
    network, faint = tiny_network(), faint_images()
    model = calibrate(
        network, faint, QuantizationPolicy.parse("exact-integer", "8"), CalibrationSettings(equalize=False)
    )[0]
    with SignalObservers(network, planned(network, "exact-integer")) as observers, torch.no_grad():
        network(contrast_chart(48, 48))
    for name, watched in observers._watched.items():
        grid, seen = model.signals[name].grid, watched.observer
        assert min(grid.lower / seen.minimum, grid.upper / seen.maximum) > 0.45, name


def test_layers_with_powers_of_two_leave_room_for_strokes():
    network, faint = tiny_network(), faint_images()
    model = calibrate(network, faint, QuantizationPolicy.parse("exact", "8"))[0]
    _, *others = model.layers
    chart = contrast_chart(48, 48, strokes=True)
    for name, seen in observe(network, [chart], others).items():
        grid = model.layers[name].grid
        assert max(-grid.lower, grid.upper) > 0.4 * max(-seen.minimum, seen.maximum), name
