"""From a frozen torch model to its integer program, and why not where there is none.

The network's own forward is traced symbolically (`torch.fx`), so a network needs no second description. What integers
cannot compute (a float convolution, a division, a grid whose scale is no power of two) is refused by name.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from odm_deploy.errors import InputError
from odm_deploy.grid import Grid
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.quantization.exact import program as steps
from odm_deploy.quantization.exact.program import Program, Step
from odm_deploy.quantization.layers import QuantizedConv2d, QuantizedLayer
from odm_deploy.quantization.model import QuantizedModel
from odm_deploy.quantization.operation_signals import has_places
from odm_deploy.quantization.power_of_two import as_integer, common_exponent
from odm_deploy.quantization.signals import OUTPUT, SignalQuantizer

MOST_FRACTION_BITS = 8
"""Binary digits behind the point that a slope may have; those of modules are rounded to fewer."""
LARGEST_DIGITS = 31
"""Binary digits a constant may have; what is left of float32's 24 is the proof's to judge."""

_FUNCTIONS = (nn.ReLU, nn.PReLU, nn.LeakyReLU, nn.PixelShuffle, nn.Identity)
_LEAVES = (QuantizedLayer, SignalQuantizer, *_FUNCTIONS, nn.Conv2d, nn.Linear)
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RECTIFIERS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
_CLAMPS = (torch.clamp, torch.clamp_, torch.clamp_min, torch.clip, "clamp", "clamp_", "clamp_min", "clamp_min_", "clip")
_BORDERS = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
"""What numpy calls the borders of `F.pad`."""


_EVERY_LAYER = "quantize every layer on power-of-two grids: odm-deploy quantize ... --profile exact"
_OTHER_PROFILE = "take --profile deploy, which leaves that in float, or integer"
_READING_SIZES = ("size", "shape")


class _Proxy(fx.Proxy):
    """Tells `a += b`, which other names of `a` see, from `a = a + b`."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    """Sees networks as calls of the modules that a program has steps for."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LEAVES)


def integer_program(model: QuantizedModel) -> Program:
    """The integer program of a frozen model.

    Raises:
        InputError: the model is not integer arithmetic throughout; the line names the layer or operation.
    """
    network = model.network
    if has_places(network):
        raise InputError(
            _refused(network),
            why="it has grids of operations that no module makes, and this trace does not see them",
            fix="calibrate with a profile that is exact",
        )
    try:
        graph = _Tracer().trace(network)
    except (TraceError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, TraceError):
            reason = f"its code decides by sizes or values of the image what it computes ({reason})"
        raise InputError(_refused(network), why=reason, fix=_OTHER_PROFILE) from None
    return _Translator(network).translate(graph)


class _Translator:
    """Turns a traced graph into steps, evaluating what depends on no image."""

    def __init__(self, network: SuperResolutionNetwork) -> None:
        self._network = network
        self._modules = dict(network.named_modules())
        self._steps: list[Step] = []
        # What each node of the trace is: the name of a step's result, or a constant.
        self._results: dict[fx.Node, str | Tensor] = {}
        self._exponents: dict[str, int] = {}

    def translate(self, graph: fx.Graph) -> Program:
        image, output = "", ""
        for node in graph.nodes:
            if node.op == "placeholder":
                image = node.name
                self._results[node], self._exponents[image] = image, 0
            elif node.op == "output":
                output = self._name_of(node.args[0], node)
            else:
                self._results[node] = self._result(node)
        return Program(tuple(self._steps), image, output)

    def _result(self, node: fx.Node) -> str | Tensor:
        if not node.args and node.kwargs:
            # What a call reads may be given by its name.
            operand = next((name for name in ("input", "tensors") if name in node.kwargs), next(iter(node.kwargs)))
            node.args = (node.kwargs[operand],)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != operand}
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self._network.get_submodule(owner), name)
        if node.op == "call_module":
            return self._module(node, self._modules[str(node.target)])
        arguments: list[Any] = [self._results[value] if isinstance(value, fx.Node) else value for value in node.args]
        if not any(isinstance(value, str) for value in arguments) and node.target is not torch.cat:
            if node.op == "call_method":
                return getattr(arguments[0], str(node.target))(*arguments[1:])
            function: Callable[..., Any] = node.target  # pyright: ignore[reportAssignmentType] - call_function's target
            return function(*arguments)
        options: dict[str, Any] = dict(node.kwargs)
        if node.target in _ADDITIONS and not options and len(arguments) == 2:
            result = self._sum(node, arguments)
            return self._in_place(arguments[0], result) if _changes_its_input(node) else result
        if (module := _module_like(node.target, *arguments[1:], **options)) is not None:
            return self._plain_module(node, module, in_place=_changes_its_input(node))
        if node.target is F.pad and (border := _border(*arguments[1:], **options)):
            source = self._name_of(node.args[0], node)
            return self._add(steps.Pad(node.name, (source,), *border), self._exponents[source])
        if node.target is F.interpolate and (factor := _enlarges_by(*arguments[1:], **options)):
            source = self._name_of(node.args[0], node)
            return self._add(steps.Enlarge(node.name, (source,), factor), self._exponents[source])
        if node.target is torch.cat:
            return self._concat(node)
        name = node.args[-1] if node.target is getattr else getattr(node.target, "__name__", node.target)
        if name in _READING_SIZES:
            fix = "let it enlarge by scale_factor=, and cut nothing; or take --profile deploy or integer"
            raise self._refusal(node, f"its code computes with the image's size (.{name})", fix)
        raise self._refusal(node, f"there is no integer step for {name}")

    def _module(self, node: fx.Node, module: nn.Module) -> str:
        result = self._plain_module(node, module, in_place=bool(getattr(module, "inplace", False)))
        signal = getattr(module, OUTPUT, None)
        return self._on_grid(node, signal.name, signal.grid, result) if isinstance(signal, SignalQuantizer) else result

    def _on_grid(self, node: fx.Node, name: str, grid: Grid, source: str) -> str:
        if grid.is_free or not grid.is_power_of_two:
            kind = "a free grid" if grid.is_free else f"the scale {grid.scale:.6g}, which is no power of two"
            raise self._refusal(node, f"{name} has {kind}", _EVERY_LAYER)
        exponent = as_integer(grid.scale)[1]
        step = steps.Quantize(f"{name}.codes", (source,), name, exponent, grid.zero_point, grid.bits)
        return self._add(step, exponent)

    def _in_place(self, source: Any, result: str) -> str:
        """`result`, which is from now on what everybody sees that sees the tensor `source`."""
        for node, known in self._results.items():
            if known is source:
                self._results[node] = result
        return result

    def _plain_module(self, node: fx.Node, module: nn.Module, *, in_place: bool) -> str:
        source = self._name_of(node.args[0], node)
        result = self._step_of(node, module, source)
        return self._in_place(source, result) if in_place else result

    def _step_of(self, node: fx.Node, module: nn.Module, source: str) -> str:
        exponent = self._exponents[source]
        match module:
            case QuantizedLayer():
                return self._quantized(node, module, source)
            case SignalQuantizer():
                return self._on_grid(node, module.name, module.grid, source)
            case nn.Identity():
                return source
            case nn.ReLU():
                return self._add(steps.Relu(node.name, (source,)), exponent)
            case nn.PReLU():
                return self._leaky(node, source, module.weight.detach().double().numpy())
            case nn.LeakyReLU():
                return self._leaky(node, source, np.array([module.negative_slope]))
            case nn.PixelShuffle():
                return self._add(steps.PixelShuffle(node.name, (source,), module.upscale_factor), exponent)
            case _:
                fix = _EVERY_LAYER if isinstance(module, nn.Conv2d) else _OTHER_PROFILE
                raise self._refusal(node, f"{node.target} is a float {type(module).__name__}", fix)

    def _leaky(self, node: fx.Node, source: str, slopes: NDArray[np.float64]) -> str:
        fraction_bits = max(-common_exponent(slopes), 0)
        if fraction_bits > MOST_FRACTION_BITS:
            raise self._refusal(
                node,
                f"the slope {slopes.flat[0]:.6g} has more than {MOST_FRACTION_BITS} binary digits",
                "compute it by an nn.LeakyReLU or nn.PReLU, whose slope is rounded, or use --profile deploy",
            )
        slope = np.ldexp(slopes, fraction_bits).astype(np.int64)
        step = steps.PRelu(node.name, (source,), slope, fraction_bits)
        return self._add(step, self._exponents[source] - fraction_bits)

    def _quantized(self, node: fx.Node, layer: QuantizedLayer, source: str) -> str:
        grid, weight = layer.grid, layer.weight_codes
        if layer.offsets is not None:
            raise self._refusal(node, f"the input of {layer.name} is shifted or scaled per channel first", _EVERY_LAYER)
        if not isinstance(layer, QuantizedConv2d):
            raise self._refusal(node, f"{layer.name} is a {type(layer).__name__}")
        codes = self._on_grid(node, layer.name, grid, source)
        grid_exponent = self._exponents[codes]
        outputs = weight.codes.shape[0]
        scales = np.broadcast_to(weight.scale.double().numpy(), (outputs,))
        mantissa, exponents = np.array([as_integer(float(scale)) for scale in scales], np.int64).T
        units = exponents + grid_exponent
        bias = np.zeros(outputs) if layer.bias is None else layer.bias.double().numpy()
        exponent = int(min(units.min(), common_exponent(bias) if bias.any() else units.min()))
        step = steps.Convolve(
            name=layer.name,
            sources=(codes,),
            layer=layer.name,
            codes=weight.codes.numpy(),
            mantissa=mantissa,
            shift=units - exponent,
            bias=_in_units(bias, exponent, layer.name),
            exponent=exponent,
            stride=_pair(layer.stride),
            padding=_pair(layer.padding),
            dilation=_pair(layer.dilation),
            groups=layer.groups,
        )
        return self._add(step, exponent)

    def _sum(self, node: fx.Node, arguments: list[Any]) -> str:
        results = [value for value in arguments if isinstance(value, str)]
        if len(results) == 2:
            return self._add(steps.Add(node.name, tuple(results)), min(self._exponents[name] for name in results))
        constant = next(value for value in arguments if not isinstance(value, str))
        values = torch.as_tensor(constant).detach().double().flatten().numpy()
        exponent = min(self._exponents[results[0]], common_exponent(values))
        return self._add(
            steps.AddConstant(node.name, (results[0],), _in_units(values, exponent, node.name), exponent), exponent
        )

    def _concat(self, node: fx.Node) -> str:
        parts: Any = node.args[0]
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if axis != 1:
            raise self._refusal(node, f"it joins tensors along axis {axis}, not along channels")
        names = tuple(self._name_of(part, node) for part in parts)
        return self._add(steps.Concat(node.name, names), min(self._exponents[name] for name in names))

    def _add(self, step: Step, exponent: int) -> str:
        # A layer that runs several times is as many steps, which would have one name.
        runs = itertools.count(1)
        name = step.name
        while step.name in self._exponents:
            step = dataclasses.replace(step, name=f"{name}:{next(runs)}")
        self._steps.append(step)
        self._exponents[step.name] = exponent
        return step.name

    def _name_of(self, value: Any, reader: fx.Node) -> str:
        result = self._results.get(value)
        if not isinstance(result, str):
            raise self._refusal(reader, "it reads something that is not computed from the image")
        return result

    def _refusal(self, node: fx.Node, why: str, fix: str = _OTHER_PROFILE) -> InputError:
        # Modules are named in `why`, and code at the top of the network needs no place.
        path, _ = next(reversed(node.meta.get("nn_module_stack", {"": ("", None)}).values()))
        place = f", in {path}" if path and node.op != "call_module" else ""
        return InputError(_refused(self._network), why=f"{why}{place}", fix=fix)


def _refused(network: SuperResolutionNetwork) -> str:
    return f"{network.title if network.is_foreign else network.name} is not integer arithmetic throughout"


def _module_like(target: Any, *arguments: Any, **options: Any) -> nn.Module | None:
    """The module that computes what a function or method of a tensor does; None where no step does."""
    if target in _RECTIFIERS:
        return nn.ReLU()
    if target in _CLAMPS:
        lower, upper = (*arguments, None, None)[:2]
        bounds = options.get("min", lower), options.get("max", upper)
        return nn.ReLU() if bounds == (0, None) else None
    if target in (F.leaky_relu, F.leaky_relu_):
        return nn.LeakyReLU(*arguments[:1], **{key: options[key] for key in ("negative_slope",) if key in options})
    if target in (F.pixel_shuffle, torch.pixel_shuffle):
        return nn.PixelShuffle(*arguments, **options)
    return None


def _changes_its_input(node: fx.Node) -> bool:
    """Whether a function or method changes the tensor that it is called with."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.endswith("_") or node.target is operator.iadd or bool(node.kwargs.get("inplace"))


def _border(
    pad: Any = (), mode: str = "constant", value: float | None = None
) -> tuple[tuple[int, int, int, int], str] | None:
    """Top, bottom, left and right of an `F.pad`, and numpy's name of what is there; None where no step does that."""
    sides = (*pad, 0, 0)[:4]
    if len(pad) not in (2, 4) or mode not in _BORDERS or value or not all(isinstance(s, int) and s >= 0 for s in sides):
        return None
    left, right, top, bottom = sides
    return (top, bottom, left, right), _BORDERS[mode]


def _in_units(values: NDArray[np.float64], exponent: int, name: str) -> NDArray[np.int64]:
    """Values that are multiples of 2^exponent, as integers.

    Raises:
        InputError: so many digits that no exact model could have them.
    """
    units = np.ldexp(values, -exponent)
    if np.abs(units).max(initial=0) >= 2**LARGEST_DIGITS:
        raise InputError(
            f"{name} is not exact in float32",
            why=f"its constants need units of 2^{exponent} and reach {np.abs(values).max():.3g}",
            fix="round them to multiples of input scale * weight scale (`exact.freeze.freeze_exact` does)",
        )
    return units.astype(np.int64)


def _enlarges_by(
    size: Any = None, scale_factor: Any = None, mode: str = "nearest", *_others: Any, **_more: Any
) -> int | None:
    """The whole factor by which `F.interpolate`, called so, repeats values; None where it does something else."""
    factors = scale_factor if isinstance(scale_factor, (tuple, list)) else [scale_factor]
    whole = size is None and mode == "nearest" and all(isinstance(f, (int, float)) and f == int(f) for f in factors)
    return int(factors[0]) if whole and len(set(factors)) == 1 else None


def _pair(sizes: Any) -> tuple[int, int]:
    rows, columns = sizes
    return int(rows), int(columns)
