"""Networks of the spandrel package: it tells some forty architectures by the keys of their weights.

Its architectures build themselves from plain hyper-parameters, which is what a `model.pt` keeps of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from odm_deploy.errors import InputError, MissingError
from odm_deploy.installing import install_spandrel
from odm_deploy.networks.base import StateDict
from odm_deploy.networks.folding import fold_branches
from odm_deploy.networks.foreign import ForeignNetwork, foreign_network


class UnknownNetworkError(InputError):
    """Nobody knows a network by these keys."""


def network_from_spandrel(
    state: StateDict, scale: int | None = None, *, input_range: float = 1.0, channel_order: str = "rgb"
) -> ForeignNetwork:
    """The network that a public state dict belongs to, with its weights.

    Args:
        state: float tensors by public key, as they are: prefixes may be part of them.
        scale: how much it enlarges; None takes what it was seen to do.
        input_range: value of white in the images it takes and gives.
        channel_order: of the images it takes and gives, `rgb` or `bgr`.

    Raises:
        MissingError: spandrel is not installed, or does not work here.
        UnknownNetworkError: spandrel does not know it.
        InputError: the weights do not fit, or it is no network that enlarges RGB images by `scale`.
    """
    spandrel = import_spandrel()
    try:
        descriptor: Any = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(state))
    except spandrel.UnsupportedModelError:
        raise UnknownNetworkError(
            "spandrel does not know this network", why=f"keys {', '.join(list(state)[:3])} ..", fix="name its builder"
        ) from None
    except (LookupError, ArithmeticError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise _misfit(error) from error
    channels = (descriptor.input_channels, descriptor.output_channels)
    if not isinstance(descriptor, spandrel.ImageModelDescriptor) or channels != (3, 3):
        raise InputError(
            f"{descriptor.architecture.name} is no network from RGB image to RGB image",
            why=f"it has {channels[0]} input and {channels[1]} output channels, where 3 are wanted"
            if channels != (3, 3)
            else "it takes a mask beside the image",
            fix="take weights for RGB images",
        )
    module: Any = descriptor.model
    fold_branches(module)
    return foreign_network(
        module,
        builder=_path_of(type(module)),
        arguments=_arguments_of(module),
        input_range=input_range,
        channel_order=channel_order,
        scale=scale,
    )


def _misfit(error: Exception) -> InputError:
    """What spandrel stumbled over, in one clean line: a key it counts on, or torch's list of those that differ."""
    said = " ".join(str(error).split())
    if isinstance(error, KeyError):
        what, why = "the weights do not fit their network", f"{error.args[0]} is missing"
    elif torchs := re.search(r"Error\(s\) in loading state_dict for (\w+): *(.*)", said):
        what, why = f"the weights do not fit {torchs[1]}", torchs[2]
    else:
        what, why = "spandrel cannot load these weights", f"{type(error).__name__}: {said}"
    fix = "download them again, or name what builds this variant: --network package.module:Name"
    return InputError(what, why=why[:300], fix=fix)


def import_spandrel() -> Any:
    """The package. Raises MissingError where it, or the torchvision it imports, is missing or unusable."""
    if importlib.util.find_spec("spandrel") is None:
        raise MissingError(
            "spandrel is not installed", why="it knows public networks by their weights", fix=install_spandrel()
        )
    try:
        with _standing_in_for_torchvision():
            return importlib.import_module("spandrel")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # torchvision beside a torch it was not built for raises anything
        package = (getattr(error, "name", None) or str(error)).partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package != "torchvision":
            raise MissingError(
                "spandrel cannot be imported here", why=f"{package} is not installed", fix=f"pip install {package}"
            ) from None
        why = f"this torchvision is not the one for torch {torch.__version__} ({type(error).__name__}: {error})"
        raise MissingError(
            "spandrel cannot be imported here",
            why=" ".join(why.split())[:300],
            fix=f"pip uninstall torchvision, not needed here, or get the one that fits: {_install_torchvision()}",
        ) from None


@contextmanager
def _standing_in_for_torchvision() -> Generator[None]:
    """While spandrel is imported, let empty modules be torchvision where there is none.

    It imports three names from there, for networks that fill holes and mend faces; none that enlarges images uses them.
    Builds of torchvision fit one build of torch each, so it is what an environment lacks first.
    """
    # A folder of that name without a module is what an uninstalled one can leave.
    if "torchvision" in sys.modules or getattr(importlib.util.find_spec("torchvision"), "origin", None) is not None:
        yield
        return
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    modules = {name: ModuleType(name) for name in names}
    for name in ("InterpolationMode", "rotate", "normalize"):
        setattr(modules[names[-1]], name, None)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _install_torchvision() -> str:
    """The command that gets the torchvision that belongs to the torch here."""
    version, _, build = torch.__version__.partition("+")
    major, minor = (int(part) for part in version.split(".")[:2])
    # Both are released together, torch 2.0 with torchvision 0.15.
    wanted = f'"torchvision==0.{minor + 15}.*"' if major == 2 else "torchvision"
    # Builds for CPUs and for other CUDA versions than PyPI's lie on PyTorch's own index.
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"pip install --force-reinstall --no-deps {wanted}{index}"


def _path_of(kind: type) -> str:
    """Import path of an architecture's class, by the name its package gives it, which may not be the class's own."""
    package = importlib.import_module(".".join(kind.__module__.split(".")[:3]))
    name = next((name for name, value in vars(package).items() if value is kind), kind.__name__)
    return f"{package.__name__}:{name}"


def _arguments_of(module: Any) -> dict[str, Any]:
    """A network's hyper-parameters without the classes and functions that its constructor takes by default anyway."""
    defaults = {name: each.default for name, each in inspect.signature(type(module).__init__).parameters.items()}
    return {
        name: value
        for name, value in module.hyperparameters.items()
        if not (callable(value) and value is defaults.get(name))
    }
