"""Somebody else's network behind the interface that everything here works with.

`foreign_network` looks at a module while it runs once: how much it enlarges, which of its layers run, in which order
and at which size. That is all the rest of the project needs to quantize, lower and judge it. Its layers keep their own
names behind `net.`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.networks.base import Region, SuperResolutionNetwork
from odm_deploy.networks.config import NetworkConfig
from odm_deploy.networks.dataflow import Kind, tensors_in, watch
from odm_deploy.networks.dyadic_slopes import round_slopes
from odm_deploy.networks.explicit_padding import is_explicit, make_padding_explicit
from odm_deploy.networks.folding import fold_branches, fold_parametrizations
from odm_deploy.networks.replacing import is_ordinary
from odm_deploy.networks.running import refused
from odm_deploy.networks.trusted_builders import build_module, is_spandrel
from odm_deploy.torch_files import check_plain

PROBE_PX = (48, 64)
"""Height and width of the image the layers are watched on: many networks need multiples of 16."""

_WHITE = 255.0
_SAME = 0.25
"""Grey levels that rounding in float32 may make."""
_READING_NO_NUMBERS = ("_like", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "type_as")
"""Functions of torch that ask a tensor for its type or shape alone."""


@dataclass(frozen=True)
class ForeignConfig(NetworkConfig):
    """How to build a foreign network again, and what was seen of its layers."""

    builder: str = ""
    """Import path of what builds it, `package.module:Name`; empty where nobody said, then it cannot be saved."""
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of the builder, plain values."""
    input_range: float = 1.0
    """Value of white in the images it takes and gives: 1 or 255."""
    channel_order: str = "rgb"
    """Of the colours in the images it takes and gives: rgb, or bgr as OpenCV reads files."""
    head: tuple[str, ...] = ()
    """The first layer to run."""
    tail: tuple[str, ...] = ()
    """Layers that work on enlarged features, and the last one to run."""
    float_only: tuple[str, ...] = ()
    """Layers that no quantized one could stand for: they do not run, or with a forward of their own, or others read
    their weights."""

    def __post_init__(self) -> None:
        if self.scale < 1 or not 0 < self.input_range < inf:
            raise InputError("no such network", why=f"scale {self.scale}, input_range {self.input_range}")
        if self.channel_order not in ("rgb", "bgr"):
            raise InputError("no such network", why=f"channel_order {self.channel_order}", fix="it is rgb or bgr")
        check_plain(self.arguments, "arguments")
        for name in ("head", "tail", "float_only"):
            # Lists in a file become tuples again.
            object.__setattr__(self, name, tuple(map(str, getattr(self, name))))


class ForeignNetwork(SuperResolutionNetwork):
    """Any module that enlarges RGB images; float32 [N, 3, H, W] -> [N, 3, scale*H, scale*W], both in 0..255."""

    name = "foreign"
    is_foreign = True
    config: ForeignConfig  # pyright: ignore[reportIncompatibleVariableOverride] - only ever its own kind

    def __init__(self, config: ForeignConfig, module: nn.Module | None = None) -> None:
        super().__init__(config)
        self.net = _build(config) if module is None else module
        self.register_buffer("reversed", torch.tensor([2, 1, 0]), persistent=False)

    reversed: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Upscale."""
        factor = _WHITE / self.config.input_range
        x = self._reordered(x)
        return self._reordered(self.net(x) if factor == 1.0 else self.net(x / factor) * factor)

    @property
    def output_grid(self) -> Grid:
        """8-bit images, in the range the network computes in."""
        return Grid(self.config.input_range / _WHITE, 0, 8)

    def align_input(self) -> Grid | None:
        """8-bit images, in the range the network computes in, where its first layer reads them as they are."""
        layer = next(each for each in watch(self) if each.kind is Kind.LAYER and each.name in self.config.head)
        if not layer.operands:
            return None
        read = layer.operands[0].origin()
        if read.is_made_by_the_network_itself() and len(read.operands) == 1:
            # Brought to its range.
            read = read.operands[0].origin()
        return self.output_grid if read.kind is Kind.IMAGE else None

    @torch.no_grad()
    def make_exact(self) -> None:
        """Fold the image's range into the biases, where all else is homogeneous, and round every slope.

        What integers cannot compute is refused by name once the network is traced (`quantization.exact.trace`).

        Raises:
            InputError: images of another range would come out differently.
        """
        factor = _WHITE / self.config.input_range
        if factor != 1.0:
            height, width = PROBE_PX
            image = torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(0)) * _WHITE
            expected = self(image)
            for layer in self.net.modules():
                if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
                    layer.bias.mul_(factor)
            self.config = dataclasses.replace(self.config, input_range=_WHITE)  # pyright: ignore[reportIncompatibleVariableOverride]
            if float((self(image) - expected).abs().max()) > _SAME:
                raise InputError(
                    f"{self.title} cannot be exact",
                    why="brighter images do not come out proportionally brighter, so their range cannot be folded away",
                    fix="use --profile deploy",
                )
        round_slopes(self)

    def _reordered(self, x: Tensor) -> Tensor:
        """RGB as the network's order, and back; [N, 3, H, W]."""
        return x if self.config.channel_order == "rgb" else x.index_select(1, self.reversed)

    def region_of(self, layer: str) -> Region:
        """Head and tail as they were seen to run; everything else is the body."""
        if layer in self.config.head:
            return Region.HEAD
        return Region.TAIL if layer in self.config.tail else Region.BODY

    def can_quantize(self, layer: str) -> bool:
        """Whether a quantized layer could stand for it; one of several runs has one grid for all of its inputs."""
        return layer not in self.config.float_only


def foreign_network(
    module: nn.Module,
    *,
    builder: str = "",
    arguments: Mapping[str, Any] | None = None,
    input_range: float = 1.0,
    channel_order: str = "rgb",
    scale: int | None = None,
) -> ForeignNetwork:
    """A module behind the interface, after watching it run once; the module becomes part of it, in eval mode.

    Args:
        module: float32 [N, 3, H, W] -> [N, 3, scale*H, scale*W], white being `input_range`.
        builder: `package.module:Name` of what builds it; needed to save it.
        arguments: keyword arguments of the builder, plain values.
        input_range: value of white, 1 or 255.
        channel_order: of the colours it takes and gives, `rgb` or `bgr`.
        scale: how much it enlarges; None takes what it was seen to do.

    Raises:
        InputError: it does not run on an RGB image, or does something else than enlarge it by a whole factor.
        UsageError: it runs on images of other sizes only.
    """
    _make_plain(module)
    runs, found = _watch(module.eval(), _number(input_range))
    if scale not in (None, found):
        raise InputError(
            f"this network upscales by {found}", why=f"scale {scale} was asked for", fix="ask for its own scale"
        )
    layers = {name for name, layer in module.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    plain = [name for name in runs if _is_plain(module.get_submodule(name))]
    # Networks such as VDSR enlarge the image first: what works on its size there is no tail.
    size = max(prod(PROBE_PX), *(prod(max(runs[name])) for name in plain[:1]))
    tail = [name for name in plain if prod(max(runs[name])) >= 2 * size] + plain[-1:]
    config = ForeignConfig(
        scale=found,
        builder=builder,
        arguments=dict(arguments or {}),
        input_range=_number(input_range),
        channel_order=str(channel_order).lower(),
        head=_inside(plain[:1]),
        tail=_inside(dict.fromkeys(tail)),
        float_only=_inside(sorted(layers - set(plain))),
    )
    return ForeignNetwork(config, module)


def _make_plain(module: nn.Module) -> None:
    """Bring, in place, layers of a few other kinds to the kind that can be quantized; they compute the same.

    Torch's attention runs operation by operation from then on, in the whole process. Unless somebody watches, it would
    be one fused operation, which reads the weights of layers that do not run, and rounds otherwise than its trace.
    """
    if any(isinstance(part, (nn.MultiheadAttention, nn.TransformerEncoderLayer)) for part in module.modules()):
        torch.backends.mha.set_fastpath_enabled(False)
    fold_parametrizations(module)
    make_padding_explicit(module)


def _number(input_range: Any) -> float:
    try:
        return float(input_range)
    except (TypeError, ValueError, OverflowError):
        raise InputError("no such network", why=f"input_range {input_range}", fix="it is 1 or 255") from None


def _build(config: ForeignConfig) -> nn.Module:
    """The module a config describes, with fresh weights, in eval mode. Raises as `build_module`."""
    if not config.builder:
        raise InputError(
            "nobody said what builds this network",
            fix='quantize(..., builder="package.module:Name", arguments={...}) makes it possible to save it',
        )
    module = build_module(config.builder, config.arguments).eval()
    if is_spandrel(config.builder):
        fold_branches(module)
    _make_plain(module)
    return module


def _watch(module: nn.Module, input_range: float) -> tuple[dict[str, list[tuple[int, int]]], int]:
    """Rows and columns of the input of each run of each layer, in the order of first runs; and the scale.

    Layers that run in a way that no quantized one could are left out.
    """
    runs: dict[str, list[tuple[int, int]]] = {}
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    parameters = _Parameters(layers)
    unusual: set[str] = set()

    def before(name: str) -> Callable[..., None]:
        def hook(layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...]) -> None:
            parameters.running.append(name)
            # Called by keyword, without a batch, in half precision, or with no values: nobody else here expects that.
            batched = inputs and not (isinstance(layer, nn.Conv2d) and inputs[0].dim() != 4)
            if not batched or inputs[0].dtype != torch.float32 or not inputs[0].numel() or not layer.weight.numel():
                unusual.add(name)
                return
            # Tokens show no rows and columns; linear layers read channels last.
            shape = inputs[0].shape
            rows, cols = (0, 0) if len(shape) != 4 else shape[2:] if isinstance(layer, nn.Conv2d) else shape[1:3]
            runs.setdefault(name, []).append((rows, cols))

        return hook

    def after(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        name = parameters.running.pop()
        if output.dtype != torch.float32:
            # Inside `torch.autocast`.
            unusual.add(name)

    handles = [
        handle
        for name, layer in layers.items()
        for handle in (layer.register_forward_pre_hook(before(name)), layer.register_forward_hook(after))
    ]
    height, width = PROBE_PX
    image = torch.full((1, 3, height, width), 0.5 * input_range)
    try:
        with torch.no_grad(), parameters:
            output = module(image)
    except Exception as error:  # somebody else's code may raise anything
        raise refused(module, image, error, first=True) from error
    finally:
        for handle in handles:
            handle.remove()
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    scale = shape[2] // height if isinstance(shape, tuple) and len(shape) == 4 else 0
    if not scale or shape != (1, 3, scale * height, scale * width):
        raise InputError(
            "the network does not enlarge RGB images",
            why=f"1x3x{height}x{width} became {shape}",
            fix="let what builds it return the enlarged image alone" if isinstance(shape, str) else "",
        )
    unusual |= parameters.read_elsewhere
    runs = {name: sizes for name, sizes in runs.items() if name not in unusual}
    if not runs:
        raise InputError("nothing to quantize", why="no Conv2d or Linear ran that a quantized one could stand for")
    return runs, scale


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer computes what its class says, and pads what quantized ones know."""
    return is_ordinary(layer) and not (isinstance(layer, nn.Conv2d) and not is_explicit(layer))


class _Parameters(TorchFunctionMode):
    """Finds layers whose parameters are read by other code than their own, which no quantized layer could serve: the
    weights of one are divided by the gains of its input's channels.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.running: list[str] = []
        self.read_elsewhere: set[str] = set()
        self._owners: dict[int, set[str]] = {}
        for name, layer in layers.items():
            for parameter in layer.parameters(recurse=False):
                self._owners.setdefault(id(parameter), set()).add(name)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if isinstance(output, Tensor) and output.is_floating_point() and not name.endswith(_READING_NO_NUMBERS):
            for tensor in tensors_in((args, kwargs or {})):
                owners = self._owners.get(id(tensor), set())
                if not owners.intersection(self.running[-1:]):
                    self.read_elsewhere |= owners
        return output


def _inside(names: Any) -> tuple[str, ...]:
    return tuple(f"net.{name}" for name in names)
