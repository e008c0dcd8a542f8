"""How many numbers a module holds, and how many bits they take."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from odm_deploy.accounting.paper_rules import Convention
from odm_deploy.quantization.layers import OFFSET_BITS, QuantizedLayer
from odm_deploy.quantization.policy import LayerBits

FLOAT_BITS = 32


@dataclass(frozen=True)
class Numbers:
    """How many numbers make up a quantized layer."""

    bits: LayerBits
    weights: int
    learnable: int
    """In its bias and in offsets that are any floats."""
    scales: int
    """Of its weights, and of offsets that have codes."""
    grid: int
    """Of its input: scale, zero point and, on free grids, center."""
    extra_bits: int = 0
    """Of codes of offsets, and of a gate."""

    def paper_bits(self, ranges: int) -> int:
        """Codes, learnable vectors, and the words that stand for the range of the quantizer before the layer."""
        return self.weights * self.bits.weight + FLOAT_BITS * (self.learnable + ranges) + self.extra_bits

    def stored_bits(self) -> int:
        """What `model.pt` holds: packed codes, and words for all the rest."""
        packed_bytes = -(-self.weights * self.bits.weight // 8)
        return 8 * packed_bytes + FLOAT_BITS * (self.learnable + self.scales + self.grid) + self.extra_bits


def numbers_of(module: nn.Module, planned: LayerBits | None, *, per_channel: bool) -> Numbers | None:
    """Of a layer that is quantized, or planned to be at these widths; None of one that stays float."""
    if isinstance(module, QuantizedLayer):
        return _numbers_of_quantized(module)
    if planned is None:
        return None
    weight = module.get_parameter("weight")
    learnable = sum(parameter.numel() for parameter in module.parameters(recurse=False)) - weight.numel()
    return Numbers(planned, weight.numel(), learnable, weight.shape[0] if per_channel else 1, 2)


def _numbers_of_quantized(layer: QuantizedLayer) -> Numbers:
    learnable, coded = 0 if layer.bias is None else layer.bias.numel(), list[int]()
    if layer.offsets is not None:
        offsets = layer.offsets
        for values, step in ((offsets.shift, offsets.shift_step), (offsets.gain, offsets.gain_step)):
            if values is None:
                continue
            if step is None:
                learnable += values.numel()
            else:
                coded.append(values.numel())
    gate = layer.gate
    return Numbers(
        # Whole steps behind a gate take a bit more than the codes of an image.
        LayerBits(layer.weight_bits, layer.grid.bits if gate is None else gate.frozen.bits),
        layer.codes.numel(),
        learnable,
        layer.scale.numel() + len(coded),
        3 if layer.grid.is_free else 2,
        sum(coded) * OFFSET_BITS + (0 if gate is None else gate.frozen.stored_bits),
    )


def float_bits(module: nn.Module, convention: Convention) -> int:
    """A float module's own tensors: parameters only in the papers, everything in its state dict otherwise."""
    if convention == "paper":
        return sum(parameter.numel() for parameter in module.parameters(recurse=False)) * FLOAT_BITS
    children = tuple(f"{name}." for name, _ in module.named_children())
    own = {key: value for key, value in module.state_dict().items() if not key.startswith(children)}
    return sum(8 * value.numel() * value.element_size() for value in own.values())
