"""`model.pt`: the contract between whoever quantizes a network and whoever deploys it.

A torch file holding tensors and plain values only, always read with `weights_only=True`; `docs/formats.md` lists the
keys. The round trip is exact to the bit. Files of a newer version are refused, and the version is the lowest whose
readers overlook nothing: programs that know nothing of `exact` would let engines use TF32.

`exact` is a claim: reading the file proves it again, and refuses the file where that fails. Files without the key, as
older programs wrote them, have the claim in `metadata["exact"]`; there it counts only if the proof holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from odm_deploy.bitpacking import pack_bits, unpack_bits
from odm_deploy.documents import mapping_of
from odm_deploy.errors import InputError, OdmError
from odm_deploy.files import atomic_path
from odm_deploy.grid import Grid
from odm_deploy.kinds_of_files import MODEL_WANTED
from odm_deploy.networks.base import StateDict, SuperResolutionNetwork
from odm_deploy.networks.dyadic_slopes import round_slopes
from odm_deploy.networks.foreign import ForeignConfig, ForeignNetwork
from odm_deploy.networks.registry import build_network
from odm_deploy.networks.replacing import all_names
from odm_deploy.networks.trusted_builders import BuilderError, UntrustedBuilderError, is_spandrel, trusting
from odm_deploy.quantization.exact.freeze import proven
from odm_deploy.quantization.gates import FrozenGate
from odm_deploy.quantization.layers import ChannelOffsets, FrozenLayer, QuantizedLayer
from odm_deploy.quantization.model import QuantizedModel, freeze
from odm_deploy.quantization.weights import WeightCodes
from odm_deploy.torch_files import check_plain, read_torch_file

FORMAT = "odm-deploy model"
VERSION = 5

_ALWAYS_FITS = 4096
"""A number in a config that asks for no more than any machine has."""


def save_model(model: QuantizedModel, path: Path | str) -> None:
    """Write `model.pt`, atomically.

    Raises:
        InputError: the file cannot be written, or a foreign network cannot be built again from what would be in it.
    """
    if isinstance(model.network, ForeignNetwork):
        _check_rebuilds(model)
    quantized = model.layers
    signals = {name: signal.grid.to_dict() for name, signal in model.signals.items()}
    offsets = any(layer.offsets for layer in quantized.values())
    newest = any(layer.gate or (layer.offsets and layer.offsets.has_codes) for layer in quantized.values())
    document = {
        "format": FORMAT,
        "version": 5 if newest else 4 if signals else 3 if model.exact else 2 if offsets else 1,
        "network": {"name": model.network.name, "config": model.network.config.to_dict()},
        "tensors": {
            key: value.detach().cpu().contiguous()
            for key, value in _float_tensors(model.network, quantized.keys()).items()
        },
        "layers": {name: _layer_to_dict(layer) for name, layer in quantized.items()},
        **({"signals": signals} if signals else {}),
        "exact": None if model.exact is None else dataclasses.asdict(model.exact),
        "metadata": model.metadata,
    }
    # Given a path, torch would store its name in the file: equal models should be equal files. And of a full disk its
    # writer says so little that nobody could tell.
    content = io.BytesIO()
    torch.save(document, content)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def is_model(path: Path | str) -> bool:
    """Whether a file says that it is a model.pt; it may be a damaged one."""
    try:
        document = read_torch_file(path)
    except InputError:
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT


def load_model(path: Path | str) -> QuantizedModel:
    """Read `model.pt` into a reference model on the CPU.

    Raises:
        InputError: not a model.pt, a newer version, damaged, or contents that contradict each other.
        UsageError: it needs a builder that is not trusted (`odm_deploy.networks.trusted_builders.trusting`).
    """
    document = read_torch_file(path, MODEL_WANTED)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a quantized model",
            why=_what_it_is(document),
            fix=f"quantize float weights first: odm-deploy quantize {path} --images DIR -o model.pt",
        )
    version: Any = document.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        why = f"its format version is {version!r}, this program reads 1 to {VERSION}"
        raise InputError(f"cannot read {path}", why=why)
    try:
        return _from_document(cast("dict[str, Any]", document))
    except (UntrustedBuilderError, BuilderError):
        raise
    except OdmError as error:
        raise InputError(f"{path} is damaged", why=str(error)) from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"{path} is damaged", why=f"{type(error).__name__}: {error}"[:200]) from None


def _from_document(document: dict[str, Any]) -> QuantizedModel:
    tensors: StateDict = mapping_of(document["tensors"], "tensors")
    layers = {name: _layer_from_dict(mapping_of(plain, name)) for name, plain in document["layers"].items()}
    check_plain(document["metadata"], "metadata")
    network = _network_of(document["network"]["name"], document["network"]["config"], tensors, layers)
    for key, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"its tensor {key} is unusable", why="it is not finite")
    network.load_state_dict(tensors, strict=False)
    if document.get("exact"):
        # Those of leaky ReLUs are code's, not the file's.
        round_slopes(network)
    signals = {str(name): Grid.from_dict(plain) for name, plain in document.get("signals", {}).items()}
    if free := [name for name, grid in signals.items() if grid.is_free]:
        raise InputError(f"its signal {free[0]} is unusable", why="it lies on a free grid")
    model = freeze(network, layers, document["metadata"], signals)
    if "exact" not in document:
        return _with_old_claim(model)
    claim = document["exact"]
    return model if claim is None else proven(model, coarsened_channels=int(claim["coarsened_channels"]))


def _network_of(
    name: str, config: Mapping[str, Any], tensors: StateDict, layers: Mapping[str, FrozenLayer]
) -> SuperResolutionNetwork:
    """The network a file describes, with fresh weights; built only after what it describes was found in the file.

    A config of a few bytes may describe more than a machine holds.
    """
    shapes = [*(tensor.shape for tensor in tensors.values()), *(layer.weight.codes.shape for layer in layers.values())]
    _check_sizes(config, max([_ALWAYS_FITS, len(shapes), *(size for shape in shapes for size in shape)]), "config")
    if name != ForeignNetwork.name or is_spandrel(str(config.get("builder"))):
        # Some constructors of spandrel read values back, which such tensors have none of.
        with contextlib.suppress(BuilderError), torch.device("meta"):
            _check_fits(build_network(name, config), tensors, layers)
    network = build_network(name, config)
    _check_fits(network, tensors, layers)
    return network


def _check_sizes(value: Any, largest: int, where: str) -> None:
    """Refuse whole numbers beyond anything in the file: no channel count, and no number of blocks, is larger."""
    if isinstance(value, Mapping):
        for key, item in cast("Mapping[Any, Any]", value).items():
            _check_sizes(item, largest, f"{where}.{key}"[:80])
    elif isinstance(value, (list, tuple)):
        for item in cast("Sequence[Any]", value):
            _check_sizes(item, largest, where)
    elif isinstance(value, int) and value > largest:
        raise InputError(
            "its network does not fit its tensors",
            why=f"{where} is {str(value)[:20]}, of which nothing is in the file",
        )


def _check_fits(network: SuperResolutionNetwork, tensors: StateDict, layers: Mapping[str, FrozenLayer]) -> None:
    _check_fit(tensors, _float_tensors(network, layers.keys()))
    modules = dict(network.named_modules())
    for name, layer in layers.items():
        weight = getattr(modules.get(name), "weight", None)
        if not isinstance(weight, Tensor) or weight.shape != layer.weight.codes.shape:
            found = list(weight.shape) if isinstance(weight, Tensor) else "no such layer"
            raise InputError(f"codes do not fit {name}", why=f"{list(layer.weight.codes.shape)} against {found}")


def _with_old_claim(model: QuantizedModel) -> QuantizedModel:
    """A model whose metadata says whether it is exact: proven where that is true, without the claim in any case."""
    metadata = dict(model.metadata)
    claim = metadata.pop("exact", None)
    model = dataclasses.replace(model, metadata=metadata)
    with contextlib.suppress(InputError):
        if isinstance(claim, dict):
            return proven(model, coarsened_channels=int(cast("dict[str, Any]", claim).get("coarsened_channels", 0)))
    return model


def _float_tensors(network: SuperResolutionNetwork, layers: Set[str]) -> StateDict:
    """The state of a network without that of its quantized `layers`."""
    names = set(all_names(network, layers))
    return {key: value for key, value in network.state_dict().items() if key.rpartition(".")[0] not in names}


def _check_fit(tensors: StateDict, expected: StateDict) -> None:
    if difference := sorted(set(tensors) ^ set(expected)):
        raise InputError("its tensors do not fit its network", why=", ".join(difference[:3]))
    for key, value in tensors.items():
        if value.shape != expected[key].shape:
            raise InputError(
                f"its tensor {key} is unusable", why=f"shape {list(value.shape)}, not {list(expected[key].shape)}"
            )


def _check_rebuilds(model: QuantizedModel) -> None:
    """Refuse to write a file that nobody could read: built from its config alone, the network must be this one."""
    config, layers = cast("ForeignConfig", model.network.config), model.layers
    # Whoever quantized the network runs its code already.
    with trusting(*filter(None, [config.builder])):
        again = ForeignNetwork(config)
    try:
        _check_fit(_float_tensors(model.network, layers.keys()), _float_tensors(again, layers.keys()))
        for name, layer in layers.items():
            if again.get_submodule(name).get_parameter("weight").shape != layer.codes.shape:
                raise InputError(f"layer {name} has another shape")
    except (InputError, AttributeError) as error:
        raise InputError(
            f"{config.builder} builds another network than this one",
            why=str(error),
            fix="name its builder and all of its arguments: quantize(..., builder=, arguments=)",
        ) from None


def _layer_to_dict(layer: QuantizedLayer) -> dict[str, Any]:
    weight, offsets = layer.weight_codes, layer.offsets
    index = (weight.codes.cpu().to(torch.int16) - weight.first) // weight.step
    packed = pack_bits(index.to(torch.uint8).numpy(), weight.bits)
    return {
        "grid": layer.grid.to_dict(),
        "weight": {
            "packed": torch.from_numpy(packed),
            "shape": list(weight.codes.shape),
            "bits": weight.bits,
            "first": weight.first,
            "step": weight.step,
            "scale": weight.scale.cpu(),
        },
        "bias": None if layer.bias is None else layer.bias.detach().cpu().float(),
        **({"offsets": offsets.to_dict()} if offsets else {}),
        **({"gate": layer.gate.frozen.to_dict()} if layer.gate else {}),
    }


def _layer_from_dict(plain: dict[str, Any]) -> FrozenLayer:
    weight = mapping_of(plain["weight"], "weight")
    shape = [int(size) for size in weight["shape"]]
    index = unpack_bits(weight["packed"].numpy(), weight["bits"], int(np.prod(shape)))
    codes = torch.from_numpy(index.astype(np.int16) * weight["step"] + weight["first"])
    # Checked before the narrowing to int8, which would wrap silently.
    if bool(((codes < -128) | (codes > 127)).any()):
        raise InputError("weight codes beyond int8")
    bias: Tensor | None = plain["bias"]
    if bias is not None and (bias.shape != (shape[0],) or not bool(torch.isfinite(bias).all())):
        raise InputError("a bias is unusable", why=f"shape {list(bias.shape)}, or not finite")
    offsets = ChannelOffsets.from_dict(plain["offsets"]) if plain.get("offsets") else None
    codes = codes.to(torch.int8).reshape(shape)
    stored = WeightCodes(codes, weight["scale"], weight["bits"], weight["first"], weight["step"])
    gate = FrozenGate.from_dict(plain["gate"]) if plain.get("gate") else None
    return FrozenLayer(stored, Grid.from_dict(plain["grid"]), bias, offsets, gate)


def _what_it_is(document: Any) -> str:
    if isinstance(document, dict) and document and all(isinstance(value, Tensor) for value in document.values()):
        return "it holds float tensors only, a plain state dict"
    return f"it holds a {type(document).__name__}"
