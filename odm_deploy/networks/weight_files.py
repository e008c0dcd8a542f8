"""Files of float weights, as training codes write them: what lies in one, and as which state dicts it may be read.

A file may hold more than a network's tensors: counters, optimizers, the discriminator of a GAN, an average of the
weights beside the weights themselves. And keys may have prefixes, of which nobody but the network's own code can say
whether they belong to it: old ESRGAN files begin every key with `model.`, as Lightning does around any network. So a
file has several readings, the most literal first, and who knows networks by their keys takes the first that is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odm_deploy.errors import InputError, MissingError
from odm_deploy.networks.base import StateDict
from odm_deploy.progress import counted
from odm_deploy.torch_files import read_torch_file

_AVERAGES = (
    "generator_ema",
    "params_ema",
    "params-ema",
    "model_ema",
    "ema_model",
    "net_g_ema",
    "g_ema",
    "ema",
    "state_dict_ema",
    "ema_state_dict",
)
"""Names of moving averages of the weights, which are what was meant to be used."""
_NAMES = (
    *(
        "params",
        "state_dict",
        "model_state_dict",
        "model",
        "net",
        "net_g",
        "netG",
        "generator",
        "g",
        "network",
        "module",
    ),
    *("weights", "shadow", "shadow_params"),
)
"""Names of the weights themselves, in dictionaries and as prefixes of keys."""
_COMPILED = "_orig_mod"
"""What torch.compile puts before the names of whatever it compiled; no network has a part of that name."""
_OTHERS = ("optim", "lr_sched", "sched", "disc", "net_d", "netD", "loss")
"""How the names of dictionaries begin that hold tensors of something else."""
_MOST_READINGS = 32


def read_weights(path: Path | str) -> list[StateDict]:
    """The state dicts that a file of weights may stand for, the most literal first, averages before what they average.

    Takes what `torch.save` and safetensors write, whatever the file's name. Floating-point tensors become float32.

    Raises:
        InputError: no such file, a damaged or hostile one, or no usable tensors in it.
        MissingError: it is a safetensors file, and that package is not installed.
    """
    content = _read(Path(path))
    if isinstance(content, dict) and content.get("format") == "odm-deploy model":
        raise InputError(f"{path} is already quantized", why="it is a model.pt", fix="use it with `odm-deploy export`")
    state = _unwrapped(content)
    if not state:
        fix = "save what the network's state_dict() gives: a tensor under each name"
        raise InputError(f"{path} is not a state dict", why=f"it holds {_described(content)}", fix=fix)
    return list(_readings({key: _plain(tensor, key, path) for key, tensor in state.items()}))


def _described(content: Any) -> str:
    """What a file holds that is no state dict, in words."""
    if isinstance(content, Tensor):
        return f"one tensor, {list(content.shape)}, without a name"
    kind = type(content).__name__
    if isinstance(content, (list, tuple, set, Mapping)) and not content:
        return f"an empty {kind}"
    if isinstance(content, (list, tuple, set)):
        tensors = sum(isinstance(value, Tensor) for value in content)
        inside = f"{counted(tensors, 'tensor')} without names" if tensors else "no tensors"
        return f"a {kind} of {counted(len(content), 'value')}, {inside}"
    if isinstance(content, Mapping):
        several = [str(key) for key, value in content.items() if _unwrapped(value)]
        if several:
            return f"{len(several)} dictionaries of tensors, {', '.join(several[:5])}, one of which has to be chosen"
        return f"a {kind} with {', '.join(map(str, list(content)[:5]))}, without tensors"
    return f"{content!r:.40}, of type {kind}"


def check_finite(state: Mapping[str, Tensor], path: Path | str) -> None:
    """Refuse weights that training has spoilt.

    Raises:
        InputError: NaN or infinite values, with their key and number.
    """
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise InputError(
                f"{path} holds broken weights",
                why=f"{key}: {bad} of {value.numel()} values are NaN or infinite",
                fix="use an earlier checkpoint",
            )


def _read(path: Path) -> Any:
    if not _is_safetensors(path):
        return read_torch_file(path, "a file of float weights is wanted")
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingError(
            f"cannot read {path}", why=f"safetensors is not installed ({error})", fix="pip install safetensors"
        ) from None
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot read {path}", why=str(error)[:200], fix="copy or download it again") from None


def _is_safetensors(path: Path) -> bool:
    """By its beginning, the length of a JSON header and its brace; a name may lie."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        start = stream.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _plain(tensor: Tensor, key: str, path: Path | str) -> Tensor:
    """A float32 tensor where it was another floating-point one, else the tensor itself."""
    if tensor.is_complex():
        raise InputError(f"cannot use {path}", why=f"{key} is complex, and real weights would lose its imaginary part")
    if tensor.is_quantized:
        raise InputError(f"cannot use {path}", why=f"{key} is quantized by torch", fix="give float weights")
    kind = str(tensor.dtype).removeprefix("torch.")
    if not tensor.is_floating_point():
        if key.split(".")[-1] in ("weight", "bias"):
            # Taken for floats, codes would make a network without an error that computes something else.
            why = f"{key} is {kind}: codes of weights that somebody quantized, without what makes numbers of them"
            raise InputError(f"cannot use {path}", why=why, fix="give float weights")
        return tensor.detach()
    try:
        return tensor.detach().float()
    except (NotImplementedError, RuntimeError):  # formats of four bits, two of them in a byte
        raise InputError(f"cannot use {path}", why=f"{key} is {kind}", fix="give float weights") from None


def _unwrapped(content: Any) -> StateDict:
    """The tensors of the innermost dictionary that is named as weights are, averages first; empty where there are none.

    The names of several dictionaries one beside the other, as mmagic and Lightning save them, are prefixes already.
    """
    if not isinstance(content, Mapping):
        return {}
    inside = {
        str(key): value
        for key, value in content.items()
        if isinstance(value, Mapping) and not str(key).startswith(_OTHERS) and _unwrapped(value)
    }
    name = next((name for name in (*_AVERAGES, *_NAMES) if name in inside), None)
    if name is None and len(inside) == 1 and not any(isinstance(value, Tensor) for value in content.values()):
        (name,) = inside
    if name is not None:
        return _unwrapped(inside[name])
    return {
        ".".join(part for part in str(key).split(".") if part != _COMPILED): value
        for key, value in content.items()
        if isinstance(value, Tensor)
    }


def _readings(state: StateDict, seen: set[frozenset[str]] | None = None) -> Iterator[StateDict]:
    """A state dict as it is, then without counters, and without each prefix that its keys may owe to a wrapper.

    Of readings with the same keys the first counts: an average comes before what it is the average of.
    """
    seen = set() if seen is None else seen
    if not state or frozenset(state) in seen or len(seen) == _MOST_READINGS:
        return
    seen.add(frozenset(state))
    yield state
    first = next(iter(state)).partition(".")[0]
    shared = (first,) if all(key.startswith(f"{first}.") for key in state) else ()
    for prefix in (*_AVERAGES, *_NAMES, *shared):
        start = f"{prefix}."
        yield from _readings({key[len(start) :]: value for key, value in state.items() if key.startswith(start)}, seen)
    yield from _readings({key: value for key, value in state.items() if "." in key or value.dim()}, seen)
