"""From a recipe to everything a loop needs: images, the float network, the trainable model, its gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odm_deploy.errors import InputError, UsageError
from odm_deploy.imaging.pairs import ImagePair
from odm_deploy.networks.base import SuperResolutionNetwork
from odm_deploy.networks.loading import load_network
from odm_deploy.networks.registry import build_network, network_names
from odm_deploy.quantization.cross_layer import equalize_channels
from training.data import CALIBRATION_STREAM, ImagePool, find_images, load_pairs, split_validation, to_network
from training.distributed import World
from training.loop.cuda_graphs import GraphedStep
from training.loop.step import GradientStep
from training.methods.base import Gradients, Method
from training.model import TrainableModel
from training.recipe import Recipe
from training.recipe_files import existing_place


@dataclass(frozen=True)
class Images:
    """What is trained on, what is held back to validate on, and how many were skipped as smaller than a patch."""

    pool: ImagePool
    validation: tuple[ImagePair, ...]
    skipped: int


def load_images(recipe: Recipe) -> Images:
    """Read the training folders.

    Raises:
        InputError: folders without images, images that cannot be read or are too small.
    """
    data, scale = recipe.data, recipe.network.scale
    train = find_images(existing_place(folder, "data.folders") for folder in data.folders)
    if data.validation_folders:
        held_back = find_images(existing_place(folder, "data.validation_folders") for folder in data.validation_folders)
    else:
        train, held_back = split_validation(train, data.validation_images)
    skip = data.small_images == "skip"
    pairs, skipped = load_pairs(train, scale, data.patch, skip_small=skip)
    # Whole images are validated: no patch has to fit.
    validation, _ = load_pairs(held_back, scale, 1) if held_back else ((), 0)
    return Images(ImagePool(pairs, scale, data.patch, recipe.run.seed), validation, skipped)


def load_float_network(recipe: Recipe) -> SuperResolutionNetwork:
    """The float network the run starts from.

    Raises:
        InputError: weights that cannot be read or do not fit, hyper-parameters the network does not have.
    """
    section = recipe.network
    if not section.weights:
        torch.manual_seed(recipe.run.seed)
        return build_network(section.name, {**section.config, "scale": section.scale}).eval()
    scale = section.weights_scale or section.scale
    path = existing_place(section.weights, "network.weights")
    network = load_network(path, network=section.name, scale=scale, settings=section.config)
    return rescaled(network, section.scale, recipe.run.seed) if section.weights_scale else network


def equalize(network: SuperResolutionNetwork, images: Images, recipe: Recipe) -> dict[str, list[int]]:
    """Even out the channels of the float network, in place, if the recipe says so; see `equalize_channels`."""
    if not recipe.network.equalize:
        return {}
    policy, parts = recipe.quantization.policy(), list(_calibration_batches(images, recipe, "cpu"))
    return equalize_channels(network, parts, policy.select(network), power_of_two=policy.power_of_two)


def _calibration_batches(images: Images, recipe: Recipe, device: str) -> Iterator[Tensor]:
    for index in range(recipe.data.calibration_batches):
        yield to_network(images.pool.batch(index, recipe.run.batch, CALIBRATION_STREAM)[0], device)


def rescaled(donor: SuperResolutionNetwork, scale: int, seed: int) -> SuperResolutionNetwork:
    """A network like `donor` for another scale (Lim et al., EDSR, CVPRW 2017, Sec. 3.2), in eval mode.

    It has every tensor of `donor` that has the same name and shape; the rest of the upsampler comes from `seed`.

    Raises:
        InputError: a network from elsewhere, whose scale is not known to be a setting of it.
    """
    if donor.name not in network_names():
        raise InputError(
            f"cannot take weights of another scale for {donor.name}",
            why="it is built elsewhere",
            fix="leave out network.weights_scale",
        )
    torch.manual_seed(seed)
    network = build_network(donor.name, {**dataclasses.asdict(donor.config), "scale": scale})
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    fitting = {key: value for key, value in donor.state_dict().items() if shapes.get(key) == value.shape}
    network.load_state_dict(fitting, strict=False)
    return network.eval()


def build_model(recipe: Recipe, method: Method[Any], network: SuperResolutionNetwork) -> TrainableModel:
    """The network with the method's quantizers, not yet calibrated; fresh parameters come from the seed.

    Raises:
        UsageError: the exact profile with a method whose scales are no powers of two.
        InputError: a network or layer that cannot be quantized like that.
    """
    torch.manual_seed(recipe.run.seed)
    policy = recipe.quantization.policy() if method.quantizes else None
    widths = {} if policy is None else policy.select(network)
    signals = None if policy is None else policy.signals
    exact = policy is not None and policy.power_of_two
    if exact and not method.power_of_two:
        raise UsageError(
            'quantization.profile = "exact" does not go with these scales',
            why=f"those of {method.name} are no powers of two here",
            fix='choose [method] name = "odm_v2" with power_of_two = true',
        )
    model = TrainableModel.attach(network, widths, method, exact=exact, signals=signals)
    model.network.to(recipe.run.device)
    return model


def build_gradient_step(
    recipe: Recipe, model: TrainableModel, method: Method[Any], world: World
) -> Callable[[Tensor, Tensor, int], Gradients]:
    """What computes the gradients of an iteration, see `GradientStep`.

    Raises:
        UsageError: CUDA graphs for what cannot be recorded.
    """
    step = GradientStep(model, method, world, recipe.run.autocast, recipe.run.channels_last)
    if not recipe.run.cuda_graphs:
        return step
    reasons = {
        f'run.device is "{recipe.run.device}"': recipe.run.device != "cuda",
        'biases of quantization.profile = "exact" are rounded on the processor': model.exact,
        "several processes exchange gradients within a step": world.size > 1,
    }
    if any(reasons.values()):
        why = next(reason for reason, holds in reasons.items() if holds)
        raise UsageError("cannot use run.cuda_graphs = true", why=why, fix="leave it out")
    return GraphedStep(step)


def calibrate(model: TrainableModel, method: Method[Any], images: Images, recipe: Recipe) -> None:
    """Initialise all quantizers from the float network's activations."""
    if not model.layers:
        return
    model.calibrate(_calibration_batches(images, recipe, recipe.run.device))
    method.initialize(model)
    model.project()
