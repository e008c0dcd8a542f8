"""Small networks and images that training tests share."""

from __future__ import annotations

import pytest
import torch

from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.edsr import EDSR, EdsrConfig
from odm_deploy.quantization.policy import LayerBits
from training.methods.registry import build_method
from training.model import TrainableModel


@pytest.fixture
def small_network() -> SuperResolutionNetwork:
    torch.manual_seed(7)
    return EDSR(EdsrConfig(scale=2, features=6, blocks=2)).eval()


@pytest.fixture
def low() -> torch.Tensor:
    """float32 [2, 3, 12, 14] in 0..255."""
    return torch.rand(2, 3, 12, 14, generator=torch.Generator().manual_seed(3)) * 255


@pytest.fixture
def attach(small_network, low):
    """attach(name, bits, **options) -> (method, calibrated TrainableModel of the small network's body)."""

    def make(name: str, bits: int = 4, **options):
        method = build_method({"name": name, **options})
        widths = {f"body.{block}.body.{conv}": LayerBits(bits, bits) for block in (0, 1) for conv in (0, 2)}
        model = TrainableModel.attach(small_network, widths, method)
        model.calibrate(iter([low]))
        method.initialize(model)
        model.project()
        return method, model

    return make


@pytest.fixture
def nudge():
    """nudge(model): move every quantizer parameter a little, as training would."""

    def move(model: TrainableModel) -> None:
        generator = torch.Generator().manual_seed(11)
        names = model.quantizer_parameters()
        with torch.no_grad():
            for name, parameter in model.parameters().items():
                if name in names:
                    parameter.mul_(1 + 0.2 * (torch.rand(parameter.shape, generator=generator) - 0.5))
        model.project()

    return move
