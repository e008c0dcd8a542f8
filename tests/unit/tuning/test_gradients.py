"""Networks whose code computes in place are ranked and trained as those that do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from odm_deploy.errors import InputError
from odm_deploy.networks.foreign import foreign_network
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import calibrate
from odm_deploy.tuning.finetuning import Budget, fine_tune
from odm_deploy.tuning.goals import Goal
from odm_deploy.tuning.held_back import HeldBack, Sample
from odm_deploy.tuning.sensitivity import layer_sensitivities
from odm_deploy.tuning.tune import tune
from tests.factories import random_images

POLICY = QuantizationPolicy(LayerBits(4, 4))


class Gated(nn.Module):
    """Attention by a sigmoid, as fast networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 12, 3, padding=1)

    def gated(self, x):
        return torch.sigmoid(self.gate(x)) * x

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.last(self.gated(self.first(x))), 2)


class InPlace(Gated):
    """The same, computed where autograd keeps the sigmoid."""

    def gated(self, x):
        out = torch.sigmoid(self.gate(x))
        out *= x
        return out


class Held(Gated):
    """Another name for what is overwritten."""

    def gated(self, x):
        out = torch.sigmoid(self.gate(x))
        kept = out
        out *= x
        return kept


class Sliced(Gated):
    """Written into the place of some channels, as networks of partial convolutions do."""

    def gated(self, x):
        out = torch.sigmoid(self.gate(x))
        out[:, :4] = out[:, :4] * x[:, :4]
        out[:, 4:] *= x[:, 4:]
        return out


class Detached(Gated):
    """What nobody can differentiate."""

    def forward(self, x):
        return super().forward(x).detach()


def made(kind: type[Gated]):
    torch.manual_seed(0)
    return foreign_network(kind(), input_range=255.0)


def images():
    return [torch.from_numpy(random_images(64, 64, seed=seed)) for seed in range(2)]


@pytest.mark.parametrize("kind", [InPlace, Held, Sliced])
def test_what_is_computed_in_place_is_ranked_and_trained_like_anything_else(kind):
    plain, in_place = made(Gated), made(kind)
    model, _ = calibrate(plain, images(), POLICY)
    same, _ = calibrate(in_place, images(), POLICY)
    assert layer_sensitivities(in_place, same, images()) == layer_sensitivities(plain, model, images())
    budget = Budget(steps=3)
    learned, expected = (fine_tune(*each, images(), budget).model for each in ((in_place, same), (plain, model)))
    for name, layer in expected.layers.items():
        assert torch.equal(learned.layers[name].codes, layer.codes)
    assert learned.layers["net.gate"].grid == expected.layers["net.gate"].grid


def test_a_network_without_gradients_says_so():
    network = made(Detached)
    model, _ = calibrate(network, images(), POLICY)
    with pytest.raises(InputError, match="no gradients pass through"):
        layer_sensitivities(network, model, images())
    with pytest.raises(InputError, match="cannot be fine-tuned"):
        fine_tune(network, model, images(), Budget(steps=1))


def test_what_is_only_striven_for_is_let_go_where_layers_cannot_be_ranked():
    network = made(Detached)
    calibrated = calibrate(network, images(), POLICY)
    held_back, said = HeldBack(network, map(Sample, images())), list[str]()
    goal = Goal(min_psnr_db=100.0, float_share=0.5)
    tuned = tune(network, POLICY, lambda *_: calibrated, held_back, goal=goal, say=said.append)
    assert tuned.model is calibrated[0]
    assert any(line.startswith("no layer stays float for quality: no gradients pass") for line in said)
    with pytest.raises(InputError, match="no gradients pass"):
        tune(network, POLICY, lambda *_: calibrated, held_back, goal=Goal(min_psnr_db=100.0))
