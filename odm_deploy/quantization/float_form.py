"""A float network in the form that its quantized model has, so that the two can be compared layer by layer."""

from __future__ import annotations

import copy

from odm_deploy.grid import MAX_BITS
from odm_deploy.networks.base import Region, SuperResolutionNetwork
from odm_deploy.quantization.cross_layer import SCALED_CHANNELS, scale_channels
from odm_deploy.quantization.layers import QuantizedLayer
from odm_deploy.quantization.model import QuantizedModel


def float_form(network: SuperResolutionNetwork, model: QuantizedModel) -> SuperResolutionNetwork:
    """A copy of the float network, rewritten as calibration did before it made `model`; it computes the same.

    A network whose layers are quantized has that form already.

    Raises:
        InputError: the model is of another network.
    """
    found = copy.deepcopy(network)
    if any(isinstance(module, QuantizedLayer) for module in found.modules()):
        return found
    if model.exact is not None:
        found.make_exact()
    if model.signals:
        found.align_output()
        heads = [layer for name, layer in model.layers.items() if found.region_of(name) is Region.HEAD]
        if heads and heads[0].grid.bits == MAX_BITS:
            found.align_input()
    scale_channels(found, model.metadata.get(SCALED_CHANNELS) or {})
    return found
