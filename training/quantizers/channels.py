"""Where the channels of a layer's input are, for quantizers with something per channel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from training.quantizers.base import Quantizable


@dataclass(frozen=True)
class ChannelAxis:
    """The channels of a layer's input: the second axis of [N, C, H, W] before a convolution, the last of [N, ..., C]
    before a linear layer. What is per image is per window where a network's linear layers see windows (SwinIR).
    """

    count: int
    """How many there are."""
    is_last: bool
    """Whether they come last."""

    @classmethod
    def of(cls, layer: Quantizable) -> ChannelAxis:
        """Those of the input of `layer`."""
        if isinstance(layer, nn.Linear):
            return cls(layer.in_features, True)
        return cls(layer.in_channels, False)

    def shaped(self, values: Tensor) -> Tensor:
        """A value a channel, [C], so that it broadcasts to the input."""
        return values if self.is_last else values.reshape(-1, 1, 1)

    def pixels(self, x: Tensor) -> tuple[int, ...]:
        """The axes of the input that are neither images nor channels."""
        return tuple(range(1, x.dim() - 1)) if self.is_last else tuple(range(2, x.dim()))

    def all_but_channels(self, x: Tensor) -> tuple[int, ...]:
        """The axes of the input that are not channels."""
        return (0, *self.pixels(x))
