"""From a file of float weights to a network, told from the weights alone where they say."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from torch import nn

from odm_deploy.errors import InputError, MissingError, UsageError
from odm_deploy.networks import spandrel_models
from odm_deploy.networks.foreign import ForeignNetwork
from odm_deploy.networks.loading import load_network, load_same
from odm_deploy.networks.registry import build_network, network_names
from tests.factories import random_images
from tests.foreign_networks import seeded
from tests.spandrel_here import require_spandrel

BUILDER = "tests.foreign_networks:Enlarger"
SMALL = {
    "edsr": {"features": 4, "blocks": 1},
    "rdn": {"features": 4, "blocks": 1, "convolutions": 1, "growth": 4},
    "srresnet": {"features": 4, "blocks": 1},
    "swinir": {"channels": 6, "groups": 1, "depth": 2, "heads": 2, "hidden": 12},
}


@pytest.fixture
def save(tmp_path):
    def write(content, name="w.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def image():
    return torch.from_numpy(random_images(24, 32, seed=1))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", network_names())
def test_own_networks_and_their_scales_are_told_by_their_keys(name, scale, save):
    torch.manual_seed(0)
    network = build_network(name, {"scale": scale, **SMALL[name]}).eval()
    loaded = load_network(save({"params_ema": network.state_dict(), "params": {}}))
    assert (loaded.name, loaded.scale, loaded.training) == (name, scale, False)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image()), network(image()))


def test_a_scale_and_a_network_that_are_named_are_checked(save):
    path = save(build_network("edsr", {"scale": 2, **SMALL["edsr"]}).state_dict())
    assert load_network(path, scale=2, network="edsr").scale == 2
    with pytest.raises(InputError, match="these are weights of EDSR x2"):
        load_network(path, scale=4)
    with pytest.raises(InputError, match="not an RDN state dict"):
        load_network(path, network="rdn")
    with pytest.raises(UsageError, match="no network 'vgg'"):
        load_network(path, network="vgg")


def test_settings_reach_what_the_weights_do_not_show(save):
    path = save(build_network("edsr", {"scale": 2, **SMALL["edsr"]}).state_dict())
    assert load_network(path, settings={"residual_scale": 0.5}).config.residual_scale == 0.5
    with pytest.raises(UsageError, match=r"cannot use colour = red: .*its keys are scale, features"):
        load_network(path, settings={"colour": "red"})


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("edsr", "residual_scale", ["banana", float("nan"), float("inf"), True, None, [1], {}, "1", 10**400]),
        ("edsr", "features", ["banana", 0, -1, 2.5, True, 255, 100_000, 10**400]),
        ("edsr", "learned_shortcuts", ["yes", 1, True]),
        ("edsr", "scale", [3, 255, "2"]),
        ("srresnet", "input_range", ["banana", 0, -1, float("nan"), float("inf"), True, 10**400]),
        ("srresnet", "channel_order", ["gbr", 1]),
        ("swinir", "heads", [0, 3, 7, "many"]),
        ("swinir", "window", [1, 16, 8.5]),
    ],
)
def test_a_wrong_value_of_a_setting_is_a_usage_error(name, key, values, save):
    path = save(build_network(name, {"scale": 2, **SMALL[name]}).state_dict())
    for value in values:
        with pytest.raises(UsageError, match=f"cannot use {key} = "):
            load_network(path, settings={key: value})


@pytest.mark.parametrize("key", ["input_range", "channel_order"])
def test_a_wrong_value_of_what_images_are_is_a_usage_error_for_every_network(key, save, tmp_path):
    path = save(seeded().state_dict())
    (tmp_path / "empty.onnx").write_bytes(b"")
    for value in ["banana", 0, -1, float("nan"), float("inf"), True, None, [1], {}, 10**400]:
        for call in ({"network": BUILDER}, {"network": "spandrel"}, {}):
            with pytest.raises(UsageError, match=f"cannot use {key} = "):
                load_network(path, settings={key: value}, **call)
        with pytest.raises(UsageError, match=f"cannot use {key} = "):
            load_network(tmp_path / "empty.onnx", settings={key: value})


def test_weights_that_are_not_finite_are_refused(save):
    state = build_network("edsr", {"scale": 2, **SMALL["edsr"]}).state_dict()
    state["head.0.weight"][0, 0, 0, :2] = float("nan")
    with pytest.raises(InputError, match=r"head\.0\.weight: 2 of 108 values are NaN"):
        load_network(save(state))


def test_a_builder_gets_its_arguments_and_the_weights(save):
    source = seeded(features=6)
    path = save({"state_dict": {f"module.{key}": value for key, value in source.state_dict().items()}})
    settings = {"features": 6, "input_range": 255, "channel_order": "bgr"}
    network = load_network(path, network=BUILDER, settings=settings)
    assert network.scale == 2
    with torch.no_grad():
        torch.testing.assert_close(network(image()), source(image().flip(1)).flip(1))
    with pytest.raises(InputError, match="upscales by 2"):
        load_network(path, network=BUILDER, scale=3, settings=settings)
    with pytest.raises(InputError, match=r"misshapen .*first\.weight"):
        load_network(path, network=BUILDER, settings={"features": 7})
    with pytest.raises(UsageError, match=r"cannot be built with widht = 7: .*unexpected keyword"):
        load_network(path, network=BUILDER, settings={"widht": 7})
    with pytest.raises(UsageError, match=r"cannot be built with features = wide"):
        load_network(path, network=BUILDER, settings={"features": "wide"})
    with pytest.raises(UsageError, match="cannot use input_range = white"):
        load_network(path, network=BUILDER, settings={"features": 6, "input_range": "white"})


def compact(**more):
    kind = importlib.import_module("spandrel.architectures.Compact").Compact
    torch.manual_seed(0)
    return kind(**{"num_feat": 8, "num_conv": 2, "upscale": 2, **more}).eval()


def test_spandrels_networks_are_told_by_their_keys(save):
    require_spandrel()
    module = compact(upscale=3)
    loaded = load_network(save({"state_dict": {f"net_g.{key}": each for key, each in module.state_dict().items()}}))
    assert isinstance(loaded, ForeignNetwork)
    assert loaded.scale == 3
    with torch.no_grad():
        torch.testing.assert_close(loaded(image()), module(image() / 255) * 255, rtol=1e-4, atol=1e-2)
    with pytest.raises(InputError, match="upscales by 3"):
        load_network(save(module.state_dict()), scale=4)


def old_esrgan_state(features=8, growth=32):
    """The keys that most community files for ESRGAN x4 have; one residual-in-residual block."""
    state = {}

    def conv(name, inputs, outputs):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(outputs, inputs, 3, 3) * 0.05, torch.zeros(outputs)

    conv("model.0", 3, features)
    for block in (1, 2, 3):
        for index in range(1, 6):
            name = f"model.1.sub.0.RDB{block}.conv{index}.0"
            conv(name, features + (index - 1) * growth, growth if index < 5 else features)
    conv("model.1.sub.1", features, features)
    for index, outputs in ((3, features), (6, features), (8, features), (10, 3)):
        conv(f"model.{index}", features, outputs)
    return state


@pytest.mark.parametrize("prefix", ["", "net.", "module."])
def test_the_old_layout_of_esrgan_keeps_its_prefix(prefix, save):
    require_spandrel()
    state = {f"{prefix}{key}": value for key, value in old_esrgan_state().items()}
    network = load_network(save(state))
    assert network.config.builder == "spandrel.architectures.ESRGAN:ESRGAN"
    assert network.scale == 4


def test_what_nobody_knows_is_refused_with_what_to_do(save):
    require_spandrel()
    path = save(nn.Conv2d(3, 3, 1).state_dict())
    with pytest.raises(InputError, match=r"nobody knows the network of .*weight, bias; .*--network package"):
        load_network(path)
    with pytest.raises(UsageError, match=r"--set num_feat says nothing here"):
        load_network(path, network="spandrel", settings={"num_feat": 4})


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("body.2.weight", r'the weights do not fit SRVGGNetCompact: Missing key\(s\) in state_dict: "body.2.weight"'),
        ("body.6.bias", "the weights do not fit their network: body.6.bias is missing"),
    ],
)
def test_a_network_of_spandrel_that_lacks_a_tensor_says_which_and_what_to_do(lost, words, save):
    require_spandrel()
    state = compact().state_dict()
    del state[lost]
    with pytest.raises(InputError, match=words) as refused:
        load_network(save(state))
    assert not set("\n\t") & set(str(refused.value))
    assert refused.value.fix


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "is a LoRA, which only changes another network"),
        ("model.diffusion_model.input_blocks.0.0.weight", "is a diffusion model, which runs many times for one image"),
    ],
)
def test_what_enlarges_no_images_is_not_asked_for_its_builder(key, words, save):
    require_spandrel()
    with pytest.raises(InputError, match=words) as refused:
        load_network(save({key: torch.zeros(4, 4), f"{key}.more": torch.zeros(4)}))
    assert "--network" not in str(refused.value)


def test_a_network_of_this_project_that_does_not_fit_says_so_rather_than_nobody_knows_it(save):
    require_spandrel()
    state = build_network("edsr", {"scale": 2, **SMALL["edsr"]}).state_dict()
    del state["body.1.bias"]
    with pytest.raises(InputError, match="do not fit EDSR: 1 missing"):
        load_network(save(state))


@pytest.mark.parametrize(
    "broken",
    [
        *(RuntimeError("operator torchvision::nms\ndoes not exist"), ImportError("no"), OSError("undefined symbol")),
        *(SystemExit(3), SystemExit("no licence"), ModuleNotFoundError("no ops", name="torchvision.ops")),
        *(KeyError("x"), SyntaxError("x"), BaseException("x")),
    ],
    ids=repr,
)
def test_a_torchvision_that_does_not_fit_is_named(broken, save, tmp_path, monkeypatch):
    require_spandrel()
    for name in [name for name in sys.modules if name.partition(".")[0] == "spandrel"]:
        monkeypatch.delitem(sys.modules, name)

    class Broken(ModuleType):
        def __getattr__(self, name):
            raise broken

    monkeypatch.setitem(sys.modules, "torchvision.transforms.functional", Broken("functional"))
    telling = r'is not the one for torch 2.*uninstall torchvision.*"torchvision==0\.'
    with pytest.raises(MissingError, match=telling) as caught:
        load_network(save(nn.Conv2d(3, 3, 1).state_dict()))
    assert (caught.value.exit_code, str(caught.value).count("\n")) == (4, 0)


@pytest.mark.skipif(hasattr(find_spec("torchvision"), "origin"), reason="torchvision is installed")
def test_an_empty_folder_that_torchvision_left_is_no_torchvision(tmp_path, monkeypatch):
    (tmp_path / "torchvision").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with spandrel_models._standing_in_for_torchvision():
        assert importlib.import_module("torchvision.transforms.functional").rotate is None


def test_what_spandrel_lacks_is_not_blamed_on_torchvision(save, monkeypatch):
    require_spandrel()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("spandrel", "einops")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "einops", None)
    with pytest.raises(MissingError, match="cannot be imported here: einops is not installed; pip install einops"):
        load_network(save(nn.Conv2d(3, 3, 1).state_dict()))


def test_other_weights_of_a_network_at_hand(save):
    own = build_network("edsr", {"scale": 2, **SMALL["edsr"]}).eval()
    assert load_same(save(own.state_dict()), own).config == own.config
    settings = {"features": 6, "input_range": 255}
    path = save({"params": seeded(features=6).state_dict()})
    foreign = load_network(path, network=BUILDER, settings=settings)
    assert load_same(path, foreign).config == foreign.config


def test_other_weights_of_a_network_of_spandrel(save):
    require_spandrel()
    path = save(compact().state_dict())
    network = load_network(path, settings={"input_range": 255})
    assert load_same(path, network).config == network.config
    own = build_network("edsr", {"scale": 2, **SMALL["edsr"]}).eval()
    with pytest.raises(InputError, match=r"holds another network's weights: .*; give those that it was made of"):
        load_same(save(own.state_dict()), network)
