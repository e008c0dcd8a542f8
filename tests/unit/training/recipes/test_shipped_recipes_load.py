"""Every recipe that ships loads and says what its file name says; other methods and widths are settings of them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from odm_deploy.networks.base import Region
from odm_deploy.networks.registry import build_network
from training.methods.registry import build_method, method_names
from training.recipe_files import load_recipe

FOLDER = Path(__file__).resolve().parents[4] / "training" / "recipes"
PARTS = {"base_narrow", "quickstart"}
RECIPES = sorted(path for path in FOLDER.rglob("*.toml") if path.stem not in PARTS)
METHODS = {"odm": "odm_v2", "odmv1": "odm_v1", "pams": "pams", "ddtb": "ddtb"}
COMPARED = FOLDER / "compare" / "edsr_x4_odm_w2a2.toml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recipe_is_what_its_name_says(path):
    recipe = load_recipe(path, [])
    method = build_method(recipe.method)
    if float_form := re.fullmatch(r"(\w+?)_x(\d)_float(?:_\w+)?", path.stem):
        assert not method.quantizes
        assert (recipe.network.name, recipe.network.scale) == (float_form.group(1), int(float_form.group(2)))
        if path.stem.endswith("_narrow"):
            assert not recipe.network.weights
        return
    name_form = r"(\w+?)_x(\d)_([a-z0-9]+)_(w\da\d)(?:_\w+)?"
    network, scale, name, width = re.fullmatch(name_form, path.stem).groups()
    assert (recipe.network.name, recipe.network.scale) == (network, int(scale))
    assert method.name == METHODS[name]
    assert recipe.quantization.body == width
    built = build_network(network, {"scale": int(scale)})
    selected = recipe.quantization.policy().select(built)
    body = [name for name in selected if built.region_of(name) is Region.BODY]
    assert len(body) == {"edsr": 32, "srresnet": 32, "rdn": 146, "swinir": 100}[network]


@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize("bits", ["w2a2", "w3a3", "w4a4"])
@pytest.mark.parametrize("path", sorted(FOLDER.glob("edsr_x?_odm_w4a4*.toml")), ids=lambda path: path.stem)
def test_every_method_and_width_is_a_setting_of_odms_recipe(path, bits, name):
    plain, recipe = load_recipe(path, []), load_recipe(path, [f"bits={bits}", f"method={name}"])
    assert build_method(recipe.method).name == name
    assert recipe.quantization.body == bits
    assert (recipe.network, recipe.data, recipe.run) == (plain.network, plain.data, plain.run)


def test_methods_compared_under_one_budget_differ_in_nothing_else():
    others = [load_recipe(COMPARED, [f"method={name}"]) for name in method_names()]
    assert {recipe.method["name"] for recipe in others} == set(method_names())
    assert {repr(replace(recipe, method={})) for recipe in others} == {repr(replace(others[0], method={}))}


def test_the_defaults_of_odm_v2_are_the_papers():
    recipe = load_recipe(FOLDER / "paper60k" / "edsr_x4_odm_w4a4.toml", ["bits=w2a2"])
    options = build_method(recipe.method).options
    assert (options.mismatch_weight, options.weight_percentile, options.range_percentile) == (1e-5, 99.0, 99.0)
    assert (options.update, options.clipping, options.weight_levels) == ("tensor", "corrected", "mid_rise")
    assert (recipe.run.iterations, recipe.run.batch, recipe.optimizer.halve_every) == (60000, 8, 15000)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.range_learning_rate) == (1e-4, 1e-3)
