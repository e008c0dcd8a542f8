"""Networks whose features depend on the image's size: found, and calibrated at the size of the images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odm_deploy import quantize
from odm_deploy.cli.quantize import _depends_on_size
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.quantization import post_training, size_dependence
from odm_deploy.quantization.float_form import float_form
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.quantization.size_dependence import depends_on_size, size_dependent
from odm_deploy.tuning import sensitivity
from odm_deploy.tuning.sensitivity import float_inputs, layer_sensitivities
from tests.factories import random_images, tiny_network


class Normed(nn.Module):
    """Features of length 1 (or of deviation 1, or weighed by their mean) go through a layer, and are brought back."""

    def __init__(self, how):
        super().__init__()
        self.first, self.last = (nn.Conv2d(*channels, 3, padding=1) for channels in ((3, 8), (8, 3)))
        self.body = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.how = how

    def forward(self, x):
        y = self.first(x)
        if self.how == "length":
            z = self.body(F.normalize(y, dim=(2, 3))) * (y.shape[2] * y.shape[3]) ** 0.5
        elif self.how == "deviation":
            z = self.body(F.instance_norm(y))
        else:
            z = self.body(y) * torch.sigmoid(y.mean((2, 3), keepdim=True))
        return x + self.last(y + z)


def network_of(how):
    torch.manual_seed(0)
    return foreign_network(Normed(how).eval())


def images(count, size):
    noise = torch.stack([torch.from_numpy(random_images(size, size, seed=seed)[0]) for seed in range(count)]).float()
    return list(F.avg_pool2d(noise, 5, 1, 2).split(1))


@pytest.mark.parametrize("size", [(40, 200), (200, 30), (48, 64)])
def test_only_what_depends_on_size_is_found(size):
    image = F.interpolate(images(1, 64)[0], size)
    found = size_dependent(network_of("length"), image)
    assert list(found) == ["net.body"]
    assert found["net.body"] == pytest.approx(0.5, abs=0.05)
    assert size_dependent(network_of("deviation"), image) == {}
    assert size_dependent(network_of("mean"), image) == {}


def test_it_is_calibrated_on_whole_inputs():
    network, seen, unseen = network_of("length"), images(4, 256), images(5, 256)[4]

    def psnr(whole):
        settings = CalibrationSettings(whole_inputs=whole)
        model, _ = calibrate(network, seen, QuantizationPolicy.deploy(LayerBits(8, 8)), settings)
        with torch.no_grad():
            return -10 * float((model.network(unseen) - network(unseen)).square().mean().log10())

    assert psnr(True) > psnr(False) + 3
    # What is not said is found; also of images that come once, and by the call that needs no command.
    assert psnr(None) == psnr(True)
    model = quantize(network.net, QuantizationPolicy.deploy(LayerBits(8, 8)), iter(seen))
    wanted, _ = calibrate(
        network, seen, QuantizationPolicy.deploy(LayerBits(8, 8)), CalibrationSettings(whole_inputs=True)
    )
    assert model.grids == wanted.grids


def test_sensitivities_are_those_at_the_size_of_the_images():
    network, seen = network_of("length"), images(2, 256)
    model, _ = calibrate(network, seen, QuantizationPolicy.deploy(LayerBits(8, 8)))
    found = {each.name: each.error for each in layer_sensitivities(network, model, seen[:1])}
    floats, signs = float_form(network, model), torch.Generator().manual_seed(0)
    whole = sensitivity._squares(floats, model.layers, seen[0], sensitivity.PROBES, signs)
    assert found["net.body"] == pytest.approx(whole["net.body"])
    # Those of a model.pt without its float weights, too, whose layers are other ones.
    assert size_dependent(float_inputs(model), seen[0]).keys() == {"net.body"}


def test_it_is_found_once(monkeypatch):
    network, runs = network_of("length"), []
    monkeypatch.setattr(size_dependence, "size_dependent", lambda *_: runs.append(1) or {"net.body": 0.5})
    for _ in range(2):
        assert depends_on_size(network, images(1, 64)[0]) == {"net.body": 0.5}
    assert depends_on_size(tiny_network(), images(1, 64)[0]) == {}
    assert len(runs) == 1


@pytest.mark.parametrize(("how", "found"), [("length", True), ("mean", False)])
def test_quantize_says_so(how, found, capsys):
    assert _depends_on_size(network_of(how), images(2, 64)) is found
    told = "what 1 layer reads depends on the image's size (net.body: 0.5"
    assert (told in capsys.readouterr().err) is found


def test_whole_inputs_are_as_many_as_one_batch_holds(monkeypatch):
    monkeypatch.setattr(post_training, "WHOLE_PX", 3 * 32 * 32)
    for size, count, others in ((32, 3, 2), (64, 1, 1)):
        seen, parts, unseen = post_training._with_parts(iter(images(5, size)), None)
        assert (len(parts), len(unseen)) == (count, others)
        assert len(list(seen)) == 5
