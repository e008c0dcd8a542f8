"""Putting other modules in the place of a network's own, and which of them may be replaced."""

from __future__ import annotations

from collections.abc import Container, Mapping

from torch import nn


def replace_modules(network: nn.Module, replacements: Mapping[str, nn.Module]) -> None:
    """Put each module in the place of the one with its dotted name, under all names that one has.

    One layer may be part of a network several times, as CARN's blocks are (`self.b2 = self.b1`): left under one of its
    names, it would go on computing there.

    Raises:
        AttributeError: the network has nothing of that name.
    """
    new = {id(network.get_submodule(name)): module for name, module in replacements.items()}
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if id(module) in new:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, new[id(module)])


def is_ordinary(layer: nn.Module) -> bool:
    """Whether a layer is a Conv2d or Linear that computes what its class says, so that another may take its place.

    Subclasses with a forward of their own may do anything, and so may hooks.
    """
    if "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks:  # pyright: ignore[reportPrivateUsage]
        return False
    if isinstance(layer, nn.Conv2d):
        same = type(layer)._conv_forward is nn.Conv2d._conv_forward  # pyright: ignore[reportPrivateUsage]
        return same and type(layer).forward is nn.Conv2d.forward
    return isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward


def all_names(network: nn.Module, names: Container[str]) -> list[str]:
    """Every dotted name of the modules with these names; those that the network lacks have none."""
    modules = list(network.named_modules(remove_duplicate=False))
    wanted = {id(module) for name, module in modules if name in names}
    return [name for name, module in modules if id(module) in wanted]
