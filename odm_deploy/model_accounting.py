"""What a quantized model costs: storage and bit operations of a `model.pt`, by the conventions of `accounting`.

`accounting.account` plans: what would a network cost under a policy. Here the decisions have been made, layer by layer.
"""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from odm_deploy.accounting import (
    FLOAT_BITS,
    FULL_HD_PX,
    PAPER_RULES,
    Accounting,
    Convention,
    LayerCost,
    PaperRule,
    count_macs,
)
from odm_deploy.errors import InputError, OdmError, UsageError
from odm_deploy.quantization.layers import QuantizedLayer
from odm_deploy.quantization.model import QuantizedModel


def account_model(
    model: QuantizedModel, *, convention: Convention = "honest", output_px: tuple[int, int] = FULL_HD_PX
) -> Accounting:
    """Count what a quantized model costs.

    Args:
        model: the model; its batch norms, where it had any, are part of its convolutions, in both conventions.
        convention: `honest` counts every tensor and grid the file holds; `paper` what the papers count, see
            `accounting`.
        output_px: height and width of the output image the operations are counted for, multiples of the scale.

    Raises:
        UsageError: an unknown convention, or an output size that the scale does not divide.
        InputError: a foreign network that does not run without data.
    """
    if convention not in get_args(Convention):
        raise UsageError(f"no convention {convention!r}", fix=f"use {' or '.join(get_args(Convention))}")
    network = model.network
    try:
        macs = count_macs(network, output_px)
    except OdmError:
        raise
    except Exception as error:  # somebody else's forward may do anything to a tensor without data
        raise InputError(
            f"cannot count the operations of {network.name}", why=f"{type(error).__name__}: {error}"[:200]
        ) from error
    rule = PAPER_RULES.get(network.name, PaperRule())
    costs: list[LayerCost] = []
    for name, module in network.named_modules():
        weight_bits = activation_bits = FLOAT_BITS
        if isinstance(module, QuantizedLayer):
            weight_bits, activation_bits = module.weight_bits, module.grid.bits
            if convention == "paper":
                storage = _paper_bits(module, rule, quantizer=name not in rule.float_inputs)
                if name in rule.float_inputs:
                    activation_bits = FLOAT_BITS
            else:
                storage = _packed_bits(module)
        else:
            storage = _float_bits(module, convention)
        if storage or macs[name]:
            costs.append(LayerCost(name, _kind_of(module), macs[name], weight_bits, activation_bits, storage))
    return Accounting(network.name, model.scale, convention, output_px, tuple(costs))


def cost_to_dict(cost: LayerCost) -> dict[str, Any]:
    """A layer's cost as plain values."""
    return {
        "kind": cost.kind,
        "storage_bytes": cost.storage_bits / 8,
        "macs": cost.macs,
        "bit_operations": cost.bit_operations,
    }


def _kind_of(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Quantized")


def _packed_bits(layer: QuantizedLayer) -> int:
    """What `model.pt` holds of a quantized layer: packed codes, and floats for all the rest."""
    packed_bytes = -(-layer.codes.numel() * layer.weight_bits // 8)
    floats = sum(value.numel() for value in (layer.scale, layer.bias, layer.shift, layer.gain) if value is not None)
    grid = 3 if layer.grid.is_free else 2  # scale, zero point and, on free grids, center
    return 8 * packed_bytes + FLOAT_BITS * (floats + grid)


def _paper_bits(layer: QuantizedLayer, rule: PaperRule, *, quantizer: bool) -> int:
    """Codes, the learnable vectors, and the range of the quantizer before the layer, where the papers count one."""
    learnable = sum(value.numel() for value in (layer.bias, layer.shift, layer.gain) if value is not None)
    ranges = rule.range_words_per_quantizer if quantizer else 0
    return layer.codes.numel() * layer.weight_bits + FLOAT_BITS * (learnable + ranges)


def _float_bits(module: nn.Module, convention: Convention) -> int:
    """A float module's own tensors: parameters only in the papers, everything in its state dict otherwise."""
    if convention == "paper":
        return sum(parameter.numel() for parameter in module.parameters(recurse=False)) * FLOAT_BITS
    children = tuple(f"{name}." for name, _ in module.named_children())
    own = {key: value for key, value in module.state_dict().items() if not key.startswith(children)}
    return sum(8 * value.numel() * value.element_size() for value in own.values())
