"""What reads what in a network, seen while it runs once.

Layers are followed as wholes, everything else operation by operation, whoever wrote the network: tensors are told apart
by being the same object. Nothing here changes what a network computes.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.blocks import Sum
from odm_deploy.networks.operations import ADDITIONS, FUNCTIONS, PRODUCTS, QUOTIENTS, numbered, operation_of

PROBE_PX = (48, 64)
"""Height and width of the image that a network is watched on: many networks need multiples of 16."""


class Kind(Enum):
    """What made a value."""

    IMAGE = "image"
    LAYER = "layer"
    """A convolution or linear layer."""
    SUM = "sum"
    """Two values of one shape, both computed from the image, added up."""
    RECTIFIER = "rectifier"
    MOVE = "move"
    """Values in other places, none of them changed: shuffles, slices, views, the largest of several."""
    JOIN = "join"
    """Several values side by side."""
    PRODUCT = "product"
    """Two values computed from the image, multiplied: attention."""
    ACTIVATION = "activation"
    """Another function of each number."""
    OTHER = "other"


_KINDS = {
    **dict.fromkeys(("relu", "relu_"), Kind.RECTIFIER),
    **dict.fromkeys(("cat", "concat", "concatenate"), Kind.JOIN),
    **dict.fromkeys(
        ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "contiguous", "clone", "detach", "view", "reshape",
         "permute", "transpose", "flatten", "squeeze", "unsqueeze", "__getitem__", "chunk", "split", "narrow", "flip",
         "index_select", "max_pool2d", "boolean_dispatch", "dropout"),
        Kind.MOVE,
    ),
}  # fmt: skip
_IMAGE_EDGES = "add_mean."
"""Modules of this project that move colours behind the last layer."""


@dataclass(eq=False)
class Value:
    """A tensor of the run."""

    kind: Kind
    name: str
    """Where it comes from: the layer's dotted name; of an operation, its module's and its own, numbered from the second
    one on (`body.3.add_1`)."""
    shape: tuple[int, ...]
    operands: tuple[Value, ...] = ()
    """What it was computed from, of what depends on the image."""
    readers: list[Value] = field(default_factory=list["Value"])
    """What is computed from it; twice where it is read twice."""
    module: str = ""
    """Where a quantizer of it belongs: the module whose only operation it is, such as an `nn.PReLU`, or the operation's
    own name; empty where there is neither."""
    operation: str = ""
    """The function of torch that made it, without underscores; empty of a layer."""
    is_result: bool = False
    """Whether the network returns it."""

    def origin(self) -> Value:
        """The value whose numbers these are, but for their places and for negative ones that became zero."""
        value = self
        while value.kind in (Kind.MOVE, Kind.RECTIFIER) and len(value.operands) == 1:
            value = value.operands[0]
        return value

    def uses(self) -> Generator[Value]:
        """What reads these numbers in the end, wherever they were moved; twice where it does so twice."""
        for reader in self.readers:
            if reader.kind in (Kind.MOVE, Kind.RECTIFIER):
                yield from reader.uses()
            else:
                yield reader

    def leads_to_a_layer(self) -> bool:
        """Whether any layer follows, at whatever distance."""
        found, seen = list(self.readers), set[int]()
        while found:
            value = found.pop()
            if value.kind is Kind.LAYER:
                return True
            if id(value) not in seen:
                seen.add(id(value))
                found += value.readers
        return False

    def is_made_by_the_network_itself(self) -> bool:
        """Whether the outermost module's own code computes it, or one of this project's that only shifts colours."""
        return self.kind is Kind.OTHER and ("." not in self.name or self.name.startswith(_IMAGE_EDGES))


def watch(network: SuperResolutionNetwork) -> list[Value]:
    """Every value computed from the image, in the order of computation.

    The network runs without data where its code allows that, else on a small grey image.
    """
    size = (1, 3, *PROBE_PX)
    try:
        return _run(copy.deepcopy(network).to("meta").eval(), torch.empty(size, device="meta"))
    except Exception:  # somebody else's forward may do anything to a tensor without data
        return _run(copy.deepcopy(network).eval(), torch.full(size, 127.0))


def _run(network: SuperResolutionNetwork, image: Tensor) -> list[Value]:
    recorder = _Recorder(image)
    with ExitStack() as hooks, torch.no_grad():
        for name, module in network.named_modules():
            before = module.register_forward_pre_hook(recorder.entering(name), prepend=True)
            after = module.register_forward_hook(recorder.leaving(module), prepend=True)
            hooks.enter_context(before)
            hooks.enter_context(after)
        with recorder:
            result = network(image)
    recorder.note_result(result)
    return recorder.values


class _Recorder(TorchFunctionMode):
    """Writes down calls of layers, and what else happens to tensors."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.values: list[Value] = []
        self._latest: dict[int, Value] = {}
        # Tensors live on, so that no two have the same identity.
        self._kept: list[Tensor] = []
        self._modules: list[tuple[str, nn.Module, Counter[str]]] = []
        self._layers_entered = 0
        self._note(image, Kind.IMAGE, "image", ())

    def note_result(self, tensor: Tensor) -> None:
        """Mark what the network returns, unless code made it that is not seen to run, such as TorchScript's."""
        if (value := self._latest.get(id(tensor))) is not None:
            value.is_result = True

    def entering(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """A hook for before a module runs."""

        def hook(module: nn.Module, _inputs: tuple[Any, ...]) -> None:
            self._modules.append((name, module, Counter()))
            self._layers_entered += isinstance(module, _WHOLE)

        return hook

    def leaving(self, module: nn.Module) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        """A hook for after it ran."""

        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            name, *_ = self._modules.pop()
            if isinstance(module, _WHOLE):
                self._layers_entered -= 1
                kind = Kind.SUM if isinstance(module, Sum) else Kind.LAYER
                self._note(output, kind, name, self._known(inputs), name)

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if self._layers_entered or not self._modules:
            return output
        operands = self._known((args, kwargs or {}))
        name = getattr(func, "__name__", "")
        owner, module, counts = self._modules[-1]
        if (operation := operation_of(func, output)) is not None:
            # Counted also where it has nothing to do with the image: whoever runs the network sees it, too.
            own = numbered(operation, counts)
            if operands:
                if operation in QUOTIENTS and not self._is_share(args, kwargs or {}):
                    name = f"other_{name}"
                place = "" if hasattr(module, own) else f"{owner}.{own}".lstrip(".")
                self._note_operation(output, name, operands, own, owner if _is_plain_function(module) else place)
            return output
        for tensor in tensors_in(output):
            if operands:
                # Comparisons and indices depend on the image, too, but whoever runs the network counts none of them.
                own = numbered(name.strip("_"), counts) if tensor.is_floating_point() else name.strip("_")
                self._note_operation(tensor, name, operands, own, "")
        return output

    def _is_share(self, args: Any, kwargs: Mapping[str, Any]) -> bool:
        """Whether a division is one of what depends on the image, and does not round."""
        divided = args[0] if args else kwargs.get("input")
        return id(divided) in self._latest and not (len(args) > 2 or kwargs.get("rounding_mode"))

    def _note_operation(
        self, tensor: Tensor, operation: str, operands: tuple[Value, ...], own: str, place: str
    ) -> None:
        kind, operation = _KINDS.get(operation, Kind.OTHER), operation.strip("_")
        if operation in FUNCTIONS:
            kind = Kind.ACTIVATION
        elif operation in ADDITIONS and len(operands) == 2 and operands[0].shape == operands[1].shape:
            kind = Kind.SUM
        elif operation in PRODUCTS and len(operands) == 2:
            kind = Kind.PRODUCT
        owner, *_ = self._modules[-1]
        self._note(tensor, kind, f"{owner}.{own}".lstrip("."), operands, place, operation)

    def _note(
        self,
        tensor: Tensor,
        kind: Kind,
        name: str,
        operands: tuple[Value, ...],
        module: str = "",
        operation: str = "",
    ) -> None:
        value = Value(kind, name, tuple(tensor.shape), operands, module=module, operation=operation)
        for operand in operands:
            operand.readers.append(value)
        self.values.append(value)
        self._kept.append(tensor)
        self._latest[id(tensor)] = value

    def _known(self, arguments: Any) -> tuple[Value, ...]:
        return tuple(self._latest[id(tensor)] for tensor in tensors_in(arguments) if id(tensor) in self._latest)


_WHOLE = (nn.Conv2d, nn.Linear, Sum)


def _is_plain_function(module: nn.Module) -> bool:
    """Whether a module is torch's own and has no parts: all it does is one operation."""
    return type(module).__module__.startswith("torch.nn") and next(module.children(), None) is None


def tensors_in(values: Any) -> Iterable[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from tensors_in(value)
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value)
