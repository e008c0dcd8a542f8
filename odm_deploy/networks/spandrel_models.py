"""Networks of the spandrel package: it tells some forty architectures by the keys of their weights.

Its architectures build themselves from plain hyper-parameters, which is what a `model.pt` keeps of them.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from odm_deploy.errors import InputError, MissingError
from odm_deploy.networks.base import StateDict
from odm_deploy.networks.folding import fold_branches
from odm_deploy.networks.foreign import ForeignNetwork, foreign_network


def network_from_spandrel(state: StateDict, scale: int) -> ForeignNetwork:
    """The network that a public state dict belongs to, with its weights.

    Raises:
        MissingError: spandrel is not installed.
        InputError: spandrel does not know it, or it is no network that enlarges RGB images by `scale`.
    """
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
    except ImportError as error:
        raise MissingError(
            "spandrel is not installed", why=str(error), fix="pip install 'odm-deploy[spandrel]'"
        ) from None
    try:
        descriptor: Any = ModelLoader(device="cpu").load_from_state_dict(dict(state))
    except UnsupportedModelError:
        raise InputError(
            "spandrel does not know this network", why=f"keys {', '.join(list(state)[:3])} ..", fix="name its builder"
        ) from None
    except (LookupError, ArithmeticError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise InputError("spandrel cannot load these weights", why=f"{type(error).__name__}: {error}"[:300]) from error
    channels = (descriptor.input_channels, descriptor.output_channels)
    if not isinstance(descriptor, ImageModelDescriptor) or channels != (3, 3):
        raise InputError(f"{descriptor.architecture.name} is no network from RGB image to RGB image")
    module: Any = descriptor.model
    fold_branches(module)
    return foreign_network(module, builder=_path_of(type(module)), arguments=_arguments_of(module), scale=scale)


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
