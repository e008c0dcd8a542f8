"""Networks that do not run at every size: one line with the sizes, wherever the program runs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from odm_deploy import quantize
from odm_deploy.errors import InputError, UsageError
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.networks.running import check_exportable, check_sizes, multiples_taken, run_network
from odm_deploy.proof.evaluation import upscaler_of
from odm_deploy.quantization.input_format import find_input_format
from odm_deploy.quantization.observers import observe
from odm_deploy.tuning.held_back import HeldBack, Sample
from odm_deploy.tuning.sensitivity import layer_sensitivities


class Places(nn.Module):
    """Adds a table of its own to the features, of `table` rows and columns; all sizes that divide by it fit."""

    def __init__(self, rows, columns, tiled=False):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 3, 3, padding=1)
        self.places = nn.Parameter(torch.zeros(1, 4, rows, columns))
        self.tiled = tiled

    def forward(self, x):
        x = self.first(x)
        rows, columns = (x.shape[axis] // self.places.shape[axis] if self.tiled else 1 for axis in (2, 3))
        return self.last(self.body(x) + self.places.repeat(1, 1, rows, columns))


def image(height, width):
    return torch.zeros(1, 3, height, width)


def calls_of(network):
    """What runs somebody's network on an image that it does not take."""
    low = image(40, 50)
    yield lambda: run_network(network, low)
    yield lambda: observe(network, [low], ["net.body"])
    yield lambda: HeldBack(network, [Sample(low)])
    yield lambda: upscaler_of(network)(low.numpy())
    yield lambda: quantize(network.net, 8, [low])
    small = quantize(network.net, 8, [image(48, 48)])
    yield lambda: small(low)
    yield lambda: layer_sensitivities(network, small, [low])


def test_wherever_it_is_run_the_sizes_are_told() -> None:
    network = foreign_network(Places(16, 16, tiled=True))
    calls = list(calls_of(network))
    assert len(calls) == 7
    refused = r"^the network does not run on images of (50|48)x40 pixels: RuntimeError: The size of .*; "
    quantized = calls.pop(5)
    for call in calls:
        with pytest.raises(UsageError, match=refused + "it runs at 48x48, 64x48, 64x64, 96x96, 128x128: .*--crop 48$"):
            call()
    # Calibration on other images no longer helps what is quantized already.
    with pytest.raises(UsageError, match=refused + r"it runs where .* multiples of 16: .*, 64x48 say, or pad"):
        quantized()


def test_sizes_are_known_before_anything_is_computed() -> None:
    network, ran = quantize(Places(16, 16, tiled=True), 8, [image(48, 48)]).network, []
    network.net.last.register_forward_hook(lambda _module, _inputs, output: ran.append(output.device.type))
    check_sizes(network, [(64, 48), (96, 96)])
    assert set(ran) == {"meta"}
    with pytest.raises(UsageError, match=r"50x64 pixels: .*multiples of 16: .* 64x64 say"):
        check_sizes(network, [(64, 48), (64, 50)])
    assert set(ran) == {"meta"}
    # Of code that wants data nothing is known.
    network.net.register_forward_pre_hook(lambda _module, inputs: float(inputs[0].sum()))
    check_sizes(network, [(64, 50)])


@pytest.mark.parametrize(("rows", "columns", "divisor"), [(4, 4, 4), (8, 8, 8), (16, 16, 16), (1, 1, 1)])
def test_what_sides_have_to_be_multiples_of_is_found_without_data(rows, columns, divisor) -> None:
    network, ran = foreign_network(Places(rows, columns, tiled=True)), []
    network.net.last.register_forward_hook(lambda _module, _inputs, output: ran.append(output.device.type))
    assert multiples_taken(network) == divisor
    assert set(ran) == {"meta"}
    # Of code that wants data nothing is known.
    network.net.register_forward_pre_hook(lambda _module, inputs: float(inputs[0].sum()))
    assert multiples_taken(network) == 1


class InPlace(nn.Module):
    """Scales its input in place, as spandrel's RCAN does."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x *= 2.0
        return self.last(self.body(self.first(x)))


def test_the_images_stay_as_they_are() -> None:
    network, low = foreign_network(InPlace(), input_range=255), torch.full((1, 3, 48, 48), 8.0)
    run_network(network, low)
    quantize(network.net, 8, [low], input_range=255)(low)
    assert low.unique().tolist() == [8.0]


def test_one_size_is_no_advice_to_crop() -> None:
    network = foreign_network(Places(48, 64))
    photograph = np.zeros((100, 100, 3), np.uint8)
    assert find_input_format(network, [photograph]).psnr_db
    with pytest.raises(
        UsageError, match=r"50x40 pixels.*it runs at 64x48, not at 48x48, .*export runs it at 55x41, 56x40 or 80x48$"
    ):
        run_network(network, image(40, 50))
    for square in (Places(48, 48), Places(64, 64, tiled=True)):
        with pytest.raises(
            UsageError, match=r"64x48 pixels.*it runs at (48x48|64x64), .*export runs it at 55x41, 56x40 or 80x48$"
        ):
            foreign_network(square)


def test_a_network_that_cannot_be_exported_is_known_by_its_sizes() -> None:
    for side in (1, 8, 16):
        check_exportable(foreign_network(Places(side, side, tiled=True)))
    with pytest.raises(UsageError, match=r"images of 80x48 pixels: .*it runs at 64x48, not .*since export") as caught:
        check_exportable(foreign_network(Places(48, 64)))
    assert "--crop" not in caught.value.fix


def test_what_runs_at_no_size_is_refused_as_such() -> None:
    network = foreign_network(Places(16, 16, tiled=True))
    network.net.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(InputError, match=r"40, 50\]: ZeroDivisionError.*nor does it at 48x48, "):
        run_network(network, image(40, 50))


def test_this_projects_own_faults_and_full_memory_are_no_fault_of_a_size() -> None:
    with pytest.raises(ZeroDivisionError):
        run_network(lambda _: 1 / 0, image(8, 8))  # type: ignore[arg-type]
    network = foreign_network(Places(16, 16, tiled=True))
    message = "DefaultCPUAllocator: can't allocate memory"

    def full(*_):
        raise RuntimeError(message)

    network.net.register_forward_pre_hook(full)
    with pytest.raises(RuntimeError, match="can't allocate"):
        run_network(network, image(8, 8))


class Asking(nn.Module):
    """Asks its layers for a type in one of the ways that torch has."""

    def __init__(self, how):
        super().__init__()
        self.first, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 3, 3, padding=1)
        self.how = how

    def forward(self, x):
        x = self.first(x)
        if self.how == "layer":
            x = x.to(self.body.get_parameter("weight").dtype).to(self.body.get_parameter("bias").device)
        elif self.how == "network":
            x = x.to(self.get_parameter("body.weight").dtype)
        elif self.how == "dictionary":
            x = x.to(dict(self.named_parameters())["body.weight"].dtype)
        return self.last(self.body(x))


def test_a_layer_that_is_asked_for_a_parameter_gives_it() -> None:
    images = [np.full((48, 48, 3), 90, np.uint8)]
    assert "net.body" in quantize(Asking("layer"), 8, images).layers


@pytest.mark.parametrize(("how", "word"), [("network", "nn.Parameter"), ("dictionary", "body.weight")])
def test_code_that_wants_its_own_layers_is_told_so_and_not_that_it_does_not_run(how, word) -> None:
    images = [np.full((48, 48, 3), 90, np.uint8)]
    with pytest.raises(InputError, match=f"with quantized layers in place of its own.*{word}.*self.conv.weight.dtype"):
        quantize(Asking(how), 8, images)
