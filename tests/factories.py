"""Tiny quantized networks with seeded random weights: every kind of grid and of weight codes, in a network of seconds.

Ranges are measured on a float run, as calibration does, and then clipped a little, so that codes fill their grids and
both ends saturate.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import nn

from odm_deploy.grid import MAX_BITS, Grid, nearest_zero_point
from odm_deploy.lowering.lower import LoweringOptions, lower
from odm_deploy.lowering.markers import export_marked
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import QuantizedModel, freeze
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy, quantizable_layers
from odm_deploy.quantization.post_training import CalibrationSettings, calibrate
from odm_deploy.quantization.weights import WeightCodes, quantize_weight
from odm_deploy.runtimes.base import Runtime
from odm_deploy.runtimes.onnx.base import GraphRuntime
from odm_deploy.runtimes.options import RuntimeOptions
from odm_deploy.runtimes.tensor_info import Array

GridKind = Literal["asymmetric", "symmetric", "post_relu", "negative", "free"]
WeightKind = Literal["per_channel", "per_layer", "mid_rise"]

Choose = Callable[[int, str], tuple[int, GridKind, WeightKind] | None]
"""Index and name of a layer -> its bits, grid and weights; None leaves it in float."""

GRID_KINDS: tuple[GridKind, ...] = ("asymmetric", "symmetric", "post_relu", "negative", "free")
WEIGHT_KINDS: tuple[WeightKind, ...] = ("per_channel", "per_layer", "mid_rise")

CLIPPED = 0.8
"""Share of the measured range that a grid spans."""

_SWINIR = {"channels": 8, "groups": 1, "depth": 2, "heads": 2, "window": 4, "hidden": 12}


def random_images(height: int, width: int, count: int = 1, seed: int = 0) -> NDArray[np.float32]:
    """float32 [N, 3, H, W] of integers in 0..255: smooth, with some noise on top, as photographs are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [
        np.sin(rng.uniform(0.05, 0.6) * y + rng.uniform(0.05, 0.6) * x + rng.uniform(0, 6)) for _ in range(3 * count)
    ]
    smooth = 127.5 + 100 * np.stack(waves).reshape(count, 3, height, width)
    return np.clip(np.rint(smooth + rng.normal(0, 10, smooth.shape)), 0, 255).astype(np.float32)


def tiny_network(name: str = "edsr", *, scale: int = 2, blocks: int = 2, features: int = 8) -> SuperResolutionNetwork:
    """A float network with seeded weights; `blocks` and `features` are EDSR's."""
    torch.manual_seed(20)
    size: Mapping[str, Any] = {"features": features, "blocks": blocks} if name == "edsr" else _SWINIR
    return build_network(name, {"scale": scale, **size}).eval()


def grid_over(kind: GridKind, low: float, high: float, bits: int, *, power_of_two: bool = False) -> Grid:
    """A grid of the given kind for values in [low, high]."""
    low, high = CLIPPED * low, CLIPPED * high
    if kind == "free":
        grid = Grid.free(min(low, -0.3 * high), high, bits)
        if not power_of_two:
            return grid
        scale = 2.0 ** np.ceil(np.log2(grid.scale))
        # An odd number of quarter steps: zero is no level and no tie, and every level has few binary digits.
        return Grid(scale, grid.zero_point, bits, center=scale * (np.floor(grid.lower / scale) + grid.code_half + 0.25))
    reach = max(-low, high)
    bounds = {
        "asymmetric": (-0.4 * reach, reach),
        "symmetric": (-reach, reach),
        "post_relu": (0.0, reach),
        "negative": (-reach, 0.0),
    }[kind]
    grid = Grid.from_range(*bounds, bits, power_of_two=power_of_two)
    if kind == "symmetric" and bits == MAX_BITS and power_of_two:
        # Room above alone, so that engines have to shift what is nearly symmetric.
        return Grid(grid.scale, nearest_zero_point(-reach, grid.scale, bits, exact_ties=True), bits)
    if kind == "asymmetric" and power_of_two:
        # The harder half of the cases: behind a shift by an odd number of codes, ties would go to the odd code.
        return Grid(grid.scale, grid.zero_point | 1, bits)
    return grid


def weight_codes(weight: torch.Tensor, kind: WeightKind, bits: int, *, power_of_two: bool = False) -> WeightCodes:
    """Codes of the given kind; mid-rise ones fit int8 up to 7 bits and are per channel."""
    if kind != "mid_rise":
        return quantize_weight(weight, bits, per_channel=kind == "per_channel", power_of_two=power_of_two)
    bits = min(bits, 7)
    highest = 2**bits - 1
    scale = weight.detach().flatten(1).abs().amax(1) / highest
    if power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    codes = 2 * torch.floor(weight.detach() / scale.reshape(-1, *[1] * (weight.dim() - 1)) / 2) + 1
    return WeightCodes(codes.clamp(-highest, highest).to(torch.int8), scale, bits, first=-highest, step=2)


def quantized(
    network: SuperResolutionNetwork,
    choose: Choose,
    *,
    power_of_two: bool = False,
) -> QuantizedModel:
    """`network` with its layers quantized as `choose(index, layer)` says: bits, grid and weights, or None for float.

    With `power_of_two`, biases and mean shifts are rounded to few binary digits, too: then no float32 operation of a
    network quantized throughout ever rounds.
    """
    if power_of_two:
        for value in itertools.chain(network.parameters(), network.buffers()):
            value.data = torch.round(value.data * 256) / 256 if value.dim() == 1 else value.data
    ranges = _input_ranges(network)
    layers: dict[str, FrozenLayer] = {}
    for index, (name, (low, high)) in enumerate(ranges.items()):
        chosen = choose(index, name)
        if chosen is not None:
            bits, grid, kind = chosen
            module = network.get_submodule(name)
            assert isinstance(module, (nn.Conv2d, nn.Linear))
            weight = weight_codes(module.weight, kind, bits, power_of_two=power_of_two)
            activation = grid_over(grid, low, high, bits, power_of_two=power_of_two)
            layers[name] = FrozenLayer(weight, activation, module.bias)
    return freeze(network, layers, {"method": "random"})


@torch.no_grad()
def _input_ranges(network: SuperResolutionNetwork) -> dict[str, tuple[float, float]]:
    """Smallest and largest input of every layer on a random image, by dotted name, in network order."""
    seen: dict[str, tuple[float, float]] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda _module, inputs, _output: seen.update({name: (float(inputs[0].min()), float(inputs[0].max()))})

    names = quantizable_layers(network)
    hooks = [network.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    network(torch.from_numpy(random_images(24, 32, seed=9)))
    for hook in hooks:
        hook.remove()
    return {name: seen[name] for name in names}


def body_only(bits: int, grid: GridKind, weight: WeightKind) -> Choose:
    """A `choose` that quantizes EDSR's body alike and leaves head and tail in float, as the papers do."""
    return lambda _, name: (bits, grid, weight) if name.startswith("body") else None


@functools.cache
def tiny_model(
    bits: int = 4, grid: GridKind = "asymmetric", weight: WeightKind = "per_channel", *, scale: int = 2
) -> QuantizedModel:
    """EDSR with 2 blocks of 8 features, its body quantized alike. Cached: treat it as read-only."""
    return quantized(tiny_network(scale=scale), body_only(bits, grid, weight))


@functools.cache
def exact_model(bits: int = 4, grid: GridKind = "asymmetric") -> QuantizedModel:
    """The same, quantized throughout with power-of-two scales, so that its arithmetic never rounds. Cached."""
    return quantized(
        tiny_network(),
        lambda _, name: (bits, grid, "per_channel") if name.startswith("body") else (8, "symmetric", "per_channel"),
        power_of_two=True,
    )


UNFITTED = CalibrationSettings(equalize=False, output_ranges=False, adaptive_rounding=False, correct_bias=False)
"""Ranges and codes one by one: no gains stand before the quantizers, and values lie on ties where weights put them."""


@functools.cache
def model_on_ties() -> QuantizedModel:
    """EDSR calibrated to 3 bits on short scales: sums are exact, and many of them lie on rounding ties. Cached."""
    images = [torch.from_numpy(random_images(20, 24, seed=seed)) for seed in range(2)]
    model, _ = calibrate(tiny_network(), images, QuantizationPolicy(LayerBits(3, 3)), UNFITTED)
    return model


@functools.cache
def model_of_all_kinds(*, power_of_two: bool) -> QuantizedModel:
    """EDSR with a body layer for each width 2..8 and grid that lowers differently, weights of all kinds. Cached.

    With power-of-two scales head and tail are quantized to 8 bits, else they stay float.
    """
    cases: list[tuple[int, GridKind]] = [
        *itertools.product(range(2, 9), ("asymmetric", "free")),
        *itertools.product((3, 8), ("symmetric", "post_relu", "negative")),
        (7, "symmetric"),
    ]

    def choose(index: int, name: str) -> tuple[int, GridKind, WeightKind] | None:
        if not name.startswith("body"):
            return (8, "symmetric", "per_channel") if power_of_two else None
        bits, grid = cases[(index - 1) % len(cases)]
        return bits, grid, WEIGHT_KINDS[index % len(WEIGHT_KINDS)]

    # Two convolutions a block and one behind the last: exactly one layer a case.
    return quantized(tiny_network(blocks=(len(cases) - 1) // 2, features=4), choose, power_of_two=power_of_two)


_TRACED: dict[QuantizedModelKey, onnx.ModelProto] = {}
"""What models were traced to, before any runtime's dialect."""


@functools.cache
def _lowered(model: QuantizedModelKey, options: LoweringOptions) -> onnx.ModelProto:
    def traced_once(*arguments: Any) -> ir.Model:
        # As `lower_each` does: the first graph is lowered as it is, others are copies of it.
        if model in _TRACED:
            return ir.from_proto(_TRACED[model])
        marked = export_marked(*arguments)
        _TRACED[model] = ir.to_proto(marked)
        return marked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("odm_deploy.lowering.lower.export_marked", traced_once)
        return lower(model.model, options)


class QuantizedModelKey:
    """A model that compares by identity, to remember what it was lowered to."""

    def __init__(self, model: QuantizedModel) -> None:
        self.model = model

    def __hash__(self) -> int:
        return id(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QuantizedModelKey) and other.model is self.model


def lowered(model: QuantizedModel, **options: Any) -> onnx.ModelProto:
    """A fresh copy of the model's ONNX graph; tracing takes seconds, so each model is traced once for all options."""
    copy = onnx.ModelProto()
    copy.CopyFrom(_lowered(QuantizedModelKey(model), LoweringOptions(**options)))
    return copy


class OnnxReference(GraphRuntime):
    """ONNX's own reference implementation, behind the protocol of a runtime: slow, and the standard's word."""

    name: ClassVar[str] = "onnx_reference"

    def __init__(self, graph: onnx.ModelProto) -> None:
        super().__init__(graph)
        self.device = "numpy"
        self._evaluator = ReferenceEvaluator(graph)

    @classmethod
    def _load(cls, model: bytes, graph: onnx.ModelProto, options: RuntimeOptions, label: str) -> Self:
        return cls(graph)

    def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = [info.name for info in self.outputs]
        return dict(zip(names, self._evaluator.run(names, dict(feeds)), strict=True))

    def describe(self) -> dict[str, Any]:
        """Its name and version."""
        return {"runtime": self.name, "version": onnx.__version__}

    def _release(self) -> None:
        return None


def _open_openvino(model: bytes) -> Runtime:
    from odm_deploy.runtimes.onnx.openvino_cpu import OpenVinoCpu

    return OpenVinoCpu.open_bytes(model)


def _open_onnxruntime(model: bytes, *, optimize: bool) -> Runtime:
    from odm_deploy.runtimes.onnx.onnx_runtime import OnnxRuntime

    return OnnxRuntime.open_bytes(model, RuntimeOptions(optimize=optimize))


OPENERS: dict[str, Callable[[bytes], Runtime]] = {
    "onnx_reference": OnnxReference.open_bytes,
    "onnxruntime": functools.partial(_open_onnxruntime, optimize=True),
    "onnxruntime_unfused": functools.partial(_open_onnxruntime, optimize=False),
    "openvino": _open_openvino,
}
"""Everything that executes lowered graphs without a GPU."""
