"""What people call a network, whatever a file says about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from odm_deploy.networks.titles import network_title


@pytest.mark.parametrize(
    ("name", "config", "title"),
    [
        ("edsr", {"scale": 4}, "edsr"),
        ("foreign", {"builder": "spandrel.architectures.SPAN:SPAN"}, "SPAN"),
        ("foreign", {"builder": "spandrel.architectures.RealCUGAN:UpCunet2x"}, "RealCUGAN"),
        ("foreign", {"builder": "spandrel.architectures.PLKSR:RealPLKSR"}, "RealPLKSR"),
        ("foreign", {"builder": "mine.nets:Outer.Inner"}, "Inner"),
        ("foreign", {"builder": "odm_deploy.networks.onnx_network:OnnxNetwork"}, "ONNX"),
        ("foreign", {"builder": ""}, "foreign"),
        ("foreign", {"builder": 3}, "foreign"),
        ("foreign", {}, "foreign"),
    ],
)
def test_networks_from_elsewhere_go_by_what_builds_them(name: str, config: Mapping[str, Any], title: str) -> None:
    assert network_title(name, config) == title
