"""Any module that enlarges images: what is seen of it, and that it comes back from a model.pt."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odm_deploy import quantize
from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.errors import InputError, UsageError
from odm_deploy.lowering.lower import lower
from odm_deploy.networks.base import Region
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.networks.trusted_builders import trusting
from odm_deploy.quantization.fake_quant import fake_quantize
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from tests.factories import OPENERS, random_images
from tests.foreign_networks import BUILT, Enlarger, seeded

BUILDER = "tests.foreign_networks:Enlarger"
THROUGHOUT = QuantizationPolicy(*[LayerBits(8, 8)] * 4)


def images(count=3):
    return [torch.from_numpy(random_images(24, 32, seed=seed)) for seed in range(count)]


@pytest.fixture(scope="module")
def model():
    return quantize(seeded(), THROUGHOUT, images())


def test_scale_regions_and_layers_are_seen() -> None:
    network = foreign_network(seeded(scale=3))
    assert network.scale == 3
    regions = {name: network.region_of(f"net.{name}") for name in ("first", "body.0", "mix", "up", "last")}
    assert regions == {
        "first": Region.HEAD,
        "body.0": Region.BODY,
        "mix": Region.BODY,
        "up": Region.BODY,
        "last": Region.TAIL,
    }
    # It never runs.
    assert network.config.float_only == ("net.spare",)


def test_a_network_that_enlarges_first_has_a_body() -> None:
    # As VDSR and SRCNN: what works on the enlarged image is not all tail.
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)]
    module = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 8, 3, padding=1), *layers, nn.Conv2d(8, 3, 1))
    model = quantize(module.eval(), 8, images())
    assert list(model.layers) == ["net.2", "net.3"]


def test_images_keep_their_range() -> None:
    module = seeded()
    x = images(1)[0]
    with torch.no_grad():
        torch.testing.assert_close(foreign_network(copy.deepcopy(module))(x), module(x / 255) * 255)
        torch.testing.assert_close(foreign_network(copy.deepcopy(module), input_range=255)(x), module(x))


@pytest.mark.parametrize("white", [1, 255])
def test_a_first_layer_that_reads_the_image_reads_its_levels_as_they_are(white) -> None:
    network = foreign_network(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)), input_range=white)
    grid = network.align_input()
    assert grid is not None
    assert grid.bits == 8
    levels = torch.arange(256) * (white / 255)
    torch.testing.assert_close(fake_quantize(levels, grid), levels)
    centred = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
    assert foreign_network(centred, input_range=white).align_input() is None


def test_the_callers_module_is_left_as_it_is(model) -> None:
    module = seeded()
    state = copy.deepcopy(module.state_dict())
    quantize(module, 8, images(1))
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert isinstance(module.body[0], nn.Conv2d)


def test_quantized_at_8_bits_it_stays_close(model) -> None:
    assert list(model.layers) == [
        f"net.{name}" for name in ("first", "body.0", "body.2", "mix", "shared", "up", "last")
    ]
    x = images(1)[0]
    with torch.no_grad():
        error = model(x) - seeded()(x / 255) * 255
    assert 0 < float(error.abs().mean()) < 1.0


def test_it_shows_how_far_it_has_come() -> None:
    told = list[tuple[str, int]]()

    def track(items: Iterable[Any], total: int, stage: str = "") -> Iterator[Any]:
        told.append((stage, total))
        return iter(items)

    quantize(seeded(), 8, images(2), track=track)
    assert told[0] == ("calibrating", 2)
    assert {"ranges", "rounding"} <= {stage for stage, _ in told}
    told.clear()
    # Of what has no length nobody knows how far it is.
    quantize(seeded(), 8, iter(images(2)), track=track)
    assert "calibrating" not in {stage for stage, _ in told}


def test_a_number_quantizes_the_body_and_arrays_are_images() -> None:
    arrays = [image[0].numpy().transpose(1, 2, 0).astype(np.uint8) for image in images(2)]
    from_arrays, from_tensors = (quantize(seeded(), 4, source) for source in (arrays, images(2)))
    assert list(from_arrays.layers) == [f"net.{name}" for name in ("body.0", "body.2", "mix", "shared", "up")]
    for name, layer in from_arrays.layers.items():
        assert layer.grid == from_tensors.layers[name].grid
        assert layer.grid.bits == layer.weight_bits == 4


def test_it_comes_back_from_a_model_pt_when_trusted(model, tmp_path) -> None:
    save_model(model, tmp_path / "model.pt")
    BUILT.clear()
    with pytest.raises(UsageError, match=f"add --trust {BUILDER}"):
        load_model(tmp_path / "model.pt")
    assert BUILT == []
    with trusting(BUILDER):
        again = load_model(tmp_path / "model.pt")
    assert again.network.config == model.network.config
    x = images(1)[0]
    assert torch.equal(again(x), model(x))


def test_it_computes_the_same_in_every_runtime(model) -> None:
    proto, x = lower(model).SerializeToString(), random_images(18, 26, seed=5)
    expected = model(torch.from_numpy(x)).numpy()
    for name in ("onnxruntime", "openvino"):
        with OPENERS[name](proto) as runtime:
            assert np.quantile(np.abs(runtime.upscale(x) - expected), 0.95) < 0.5, name


def test_what_could_not_be_read_again_is_not_written(tmp_path) -> None:
    wide = seeded(features=12)
    forgotten = quantize(wide, 8, images(1))
    with pytest.raises(InputError, match="builds another network"):
        save_model(forgotten, tmp_path / "model.pt")
    save_model(quantize(wide, 8, images(1), arguments={"features": 12}), tmp_path / "model.pt")

    class Local(Enlarger):
        pass

    with pytest.raises(InputError, match="nobody said what builds"):
        save_model(quantize(Local(), 8, images(1)), tmp_path / "local.pt")
    assert not (tmp_path / "local.pt").exists()


def test_arguments_are_plain_values() -> None:
    with pytest.raises(InputError, match=r"arguments\.act\[0\] is not a plain value.*function"):
        foreign_network(seeded(), builder=BUILDER, arguments={"act": [torch.relu]})


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            nn.Conv2d(1, 3, 3, padding=1),
            "on an RGB image: a layer takes 1 channel where it gets 3; take weights",
        ),
        (nn.Conv2d(3, 3, 3), "does not enlarge RGB images"),
        (nn.Conv2d(3, 1, 3, padding=1), "does not enlarge RGB images"),
        (nn.Upsample(scale_factor=2), "nothing to quantize"),
        (nn.LSTM(64, 3), "does not run on an RGB image"),
    ],
)
def test_other_modules_are_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        foreign_network(module)


def test_layers_with_a_forward_of_their_own_stay_float() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x):
            return super().forward(x - x.mean())

    network = foreign_network(nn.Sequential(nn.Conv2d(3, 4, 1), Standardized(4, 4, 1), nn.Conv2d(4, 3, 1)))
    assert network.config.float_only == ("net.1",)


class _Doubled(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


class Unusual(nn.Module):
    """Layers that run in ways which no quantized one could, and one that its network's code asks for its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1)
        self.tied, self.keyword, self.single, self.asked = (nn.Conv2d(8, 8, 1) for _ in range(4))
        self.hooked, self.doubled = nn.Conv2d(8, 8, 1), _Doubled(8, 8, 1)
        self.hooked.register_forward_hook(lambda _module, _inputs, output: 3 * output)
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        x = self.first(x)
        x = F.conv2d(self.tied(x), self.tied.weight) + x.type_as(self.asked.weight)
        x = self.keyword(input=x)
        x = torch.stack([self.single(image) for image in x])
        x = self.doubled(self.hooked(x))
        x = self.asked(F.pad(x, [self.asked.kernel_size[0] // 2] * 4))[:, : self.asked.out_channels]
        x = self.linear(x.movedim(1, -1))[..., : self.linear.out_features].movedim(-1, 1)
        return F.pixel_shuffle(self.last(x), 2) + 0.5


@pytest.mark.parametrize("profile", ["deploy", "integer"])
@torch.no_grad()
def test_layers_that_run_in_other_ways_stay_float(profile) -> None:
    torch.manual_seed(2)
    module = Unusual().eval()
    model = quantize(module, QuantizationPolicy.parse(profile, "8"), images())
    assert sorted(model.layers) == ["net.asked", "net.last", "net.linear"]
    x = images(1)[0]
    found, expected = (pixels.clamp(0, 255) for pixels in (model(x), module(x / 255) * 255))
    assert float((found - expected).abs().mean()) < 1.0
    assert float(expected.std()) > 10.0


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_channels_stay_float() -> None:
    """DAT makes such where its width is below 32: then its positions have a width of zero."""

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.body, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 12, 1)
            self.into, self.out = nn.Linear(8, 0), nn.Linear(0, 8)

        def forward(self, x):
            x = self.body(self.first(x))
            return F.pixel_shuffle(self.last(x + self.out(self.into(x.movedim(1, -1))).movedim(-1, 1)), 2)

    assert list(quantize(Narrow(), 8, images(1)).layers) == ["net.body"]


def test_linear_layers_that_read_channels_last_are_no_tail() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.mix, self.last = nn.Conv2d(3, 128, 1), nn.Linear(128, 128), nn.Conv2d(128, 12, 1)

        def forward(self, x):
            return F.pixel_shuffle(self.last(self.mix(self.first(x).movedim(1, -1)).movedim(-1, 1)), 2)

    assert foreign_network(Wide()).config.tail == ("net.last",)


class BlueFirst(nn.Module):
    """An enlarger with a weight per colour, of colours in OpenCV's order."""

    def __init__(self, network: Enlarger) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.flip(1)).flip(1)


def test_colours_in_another_order_are_turned_around_exactly() -> None:
    x = images(1)[0]
    straight = foreign_network(seeded())
    turned = foreign_network(BlueFirst(seeded()), channel_order="bgr")
    with torch.no_grad():
        assert torch.equal(turned(x), straight(x))
    model = quantize(turned, 8, images(2))
    proto = lower(model).SerializeToString()
    expected = model(x).numpy()
    for name in ("onnxruntime", "openvino"):
        with OPENERS[name](proto) as runtime:
            assert np.quantile(np.abs(runtime.upscale(x.numpy()) - expected), 0.95) < 0.5, name


def test_an_order_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="channel_order grb"):
        foreign_network(seeded(), channel_order="grb")


class BranchesBySize(nn.Module):
    """Decides by a size while it runs: the tracer keeps the example's branch for all images."""

    def __init__(self, axis: int, largest: int) -> None:
        super().__init__()
        self.axis, self.largest = axis, largest
        self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 1)

    def forward(self, x):
        features = self.conv(x)
        if x.shape[self.axis] > self.largest:
            features = -features
        return nn.functional.pixel_shuffle(self.last(features), 2)


def test_a_network_that_fixes_the_batch_is_exported_for_one_image() -> None:
    torch.manual_seed(5)
    model = quantize(BranchesBySize(axis=0, largest=1), THROUGHOUT, images())
    proto, x = lower(model), random_images(18, 26, seed=5)
    with OPENERS["onnxruntime"](proto.SerializeToString()) as runtime:
        assert runtime.inputs[0].shape == (1, 3, None, None)
        assert np.quantile(np.abs(runtime.upscale(x) - model(torch.from_numpy(x)).numpy()), 0.95) < 0.5


def test_a_network_that_is_another_for_other_sizes_is_not_exported() -> None:
    torch.manual_seed(5)
    model = quantize(BranchesBySize(axis=2, largest=50), THROUGHOUT, images())
    with pytest.raises(InputError, match="fixes sizes while it is traced"):
        lower(model)


class LikeItsParameters(nn.Module):
    """Brings what it reads to the type and the device of a layer's parameters, and of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.last = (nn.Conv2d(inputs, 12, 3, padding=1) for inputs in (3, 12, 12))

    def forward(self, x):
        x = self.first(x.to(next(self.parameters()).device))
        x = x.to(next(self.body.parameters()).dtype) * dict(self.last.named_parameters())["weight"].shape[0]
        return F.pixel_shuffle(self.last(self.body(x)), 2)


def test_code_that_asks_for_parameters_is_quantized_exported_and_computed_in_float64() -> None:
    torch.manual_seed(5)
    model = quantize(LikeItsParameters(), THROUGHOUT, images())
    assert len(model.layers) == 3
    x = random_images(18, 26, seed=5)
    expected = model(torch.from_numpy(x)).numpy()
    assert np.abs(model.double()(torch.from_numpy(x).double()).numpy() - expected).mean() < 0.1
    with OPENERS["onnxruntime"](lower(model).SerializeToString()) as runtime:
        assert np.quantile(np.abs(runtime.upscale(x) - expected), 0.95) < 0.5


class OwnNumbers(nn.Module):
    """Makes tensors in its code, and gives them to operators that take one type only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.last = (nn.Conv2d(inputs, 12, 3, padding=1) for inputs in (3, 12, 12))

    def forward(self, x):
        x = F.prelu(self.first(x), torch.full((12,), 0.2))
        x = self.body(F.conv2d(x, torch.ones(12, 1, 3, 3) / 9, padding=1, groups=12))
        return F.pixel_shuffle(self.last(x), 2)


def test_numbers_that_code_makes_itself_are_float64_where_the_network_is() -> None:
    torch.manual_seed(5)
    model = quantize(OwnNumbers(), THROUGHOUT, images())
    x = torch.from_numpy(random_images(18, 26, seed=5))
    in_double = model.double()(x.double())
    assert in_double.dtype == torch.float64
    assert (in_double - model(x)).abs().mean() < 0.1
    assert torch.get_default_dtype() == torch.float32
