"""The config.json of a run's folder, cut or overwritten: whoever reads it is told which file that is."""

import pytest

from odm_deploy.errors import InputError
from tests.conftest import REPOSITORY
from training.loop.state import check_folder
from training.recipe_files import load_recipe, load_run

RECIPE = REPOSITORY / "training" / "recipes" / "quickstart.toml"


@pytest.mark.parametrize("text", ["", "3", "[]", '{"network": 3}'])
def test_a_damaged_config_of_a_run_is_named(text, tmp_path):
    for name in ("config.json", "last.pt"):
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=r"config\.json|network"):
        load_run(tmp_path, [])
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        check_folder(tmp_path, load_recipe(RECIPE, []))
