"""Every recipe that ships loads, names a method that exists, and says what its file name says."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from odm_deploy.networks.base import Region
from odm_deploy.networks.registry import build_network
from training.methods.registry import build_method
from training.recipe import load_recipe

FOLDER = Path(__file__).resolve().parents[3] / "training" / "recipes"
PARTS = {"base_edsr_x2", "base_edsr_x4", "budget", "base_narrow"}
RECIPES = sorted(path for path in FOLDER.rglob("*.toml") if path.stem not in PARTS)
METHODS = {
    "odm": "odm_v2",
    "odmv1": "odm_v1",
    "pams": "pams",
    "ddtb": "ddtb",
    "daq": "daq",
    "quantsr": "quantsr",
    "lsq": "lsq",
    "minmax": "minmax",
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recipe_is_what_its_name_says(path):
    recipe = load_recipe(path, [])
    method = build_method(recipe.method)
    if float_form := re.fullmatch(r"edsr_x(\d)_float(?:_short)?", path.stem):
        assert not method.quantizes
        assert recipe.network.scale == int(float_form.group(1))
        return
    name_form = r"(\w+?)_x(\d)_([a-z0-9]+)_(w\da\d)(?:_\w+)?"
    if path.stem.endswith("_float_narrow"):
        assert not method.quantizes
        assert not recipe.network.weights
        return
    network, scale, name, width = re.fullmatch(name_form, path.stem).groups()
    assert (recipe.network.name, recipe.network.scale) == (network, int(scale))
    assert method.name == METHODS[name]
    assert recipe.quantization.body == width
    built = build_network(network, {"scale": int(scale)})
    selected = recipe.quantization.policy().select(built)
    body = [name for name in selected if built.region_of(name) is Region.BODY]
    assert len(body) == {"edsr": 32, "srresnet": 32, "rdn": 146, "swinir": 100}[network]


def test_all_methods_come_at_all_widths():
    names = {path.stem for path in FOLDER.glob("*.toml")}
    expected = {f"edsr_x{scale}_{name}_w{bits}a{bits}" for scale in (2, 4) for name in METHODS for bits in (2, 3, 4)}
    assert expected <= names


def test_all_methods_are_compared_under_one_budget():
    recipes = [load_recipe(path, []) for path in (FOLDER / "compare").glob("edsr_*.toml")]
    assert {recipe.method["name"] for recipe in recipes} == {*METHODS.values(), "float"}
    # A cosine never looks at `halve_every`, which PAMS brings along.
    optimizers = {replace(recipe.optimizer, halve_every=1) for recipe in recipes}
    assert len({repr((recipe.network, recipe.data, recipe.run)) for recipe in recipes}) == len(optimizers) == 1


def test_the_defaults_of_odm_v2_are_the_papers():
    recipe = load_recipe(FOLDER / "paper60k" / "edsr_x4_odm_w2a2.toml", [])
    options = build_method(recipe.method).options
    assert (options.mismatch_weight, options.weight_percentile, options.range_percentile) == (1e-5, 99.0, 99.0)
    assert (options.update, options.clipping, options.weight_levels) == ("tensor", "corrected", "mid_rise")
    assert (recipe.run.iterations, recipe.run.batch, recipe.optimizer.halve_every) == (60000, 8, 15000)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.range_learning_rate) == (1e-4, 1e-3)
