"""What runtimes on CPUs make of layers, by the names that they leave them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from odm_deploy import quantize
from odm_deploy.building.cpu_layers import cpu_layers
from odm_deploy.building.layer_table import find_compute_layer
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.lowering.lower import LoweringOptions, lower
from tests.factories import random_images


class ScaledResidual(nn.Module):
    """As in ESRGAN: what a convolution gives is scaled before it is added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.last = (nn.Conv2d(*sizes, 3, padding=1) for sizes in ((3, 16), (16, 16), (16, 3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + 0.2 * self.body(x))


def test_openvino_takes_a_layers_name_for_that_of_the_factor_behind_it():
    torch.manual_seed(0)
    image = random_images(24, 24)[0].transpose(1, 2, 0).astype(np.uint8)
    graph = lower(quantize(ScaledResidual().eval(), 7, [image]), LoweringOptions(target="cpu"))
    layers = cpu_layers("openvino", graph.SerializeToString(), graph, InputShapes.static(1, 24, 24)).records
    names = {node.name for node in graph.graph.node if node.op_type == "Conv"}
    assert len(names) == 3
    precisions = {name: layer.precision for name in names if (layer := find_compute_layer(layers, name))}
    assert precisions == {"net.first": "fp32", "net.body": "int8", "net.last": "fp32"}
