"""Recipe files: extending, overriding with `--set`, and the places that paths name."""

import pytest

from odm_deploy.errors import InputError, UsageError
from training.recipe_files import apply_overrides, expand_places, read_recipe


def test_extends_keeps_what_is_not_overridden(tmp_path):
    (tmp_path / "base.toml").write_text('[run]\nbatch = 4\nseed = 9\n[method]\nname = "odm_v2"\nfree = true\n')
    (tmp_path / "child.toml").write_text('extends = "base.toml"\n[run]\nbatch = 2\n')
    assert read_recipe(tmp_path / "child.toml") == {
        "run": {"batch": 2, "seed": 9},
        "method": {"name": "odm_v2", "free": True},
    }


def test_another_method_drops_the_options_of_the_base(tmp_path):
    (tmp_path / "base.toml").write_text('[method]\nname = "odm_v2"\nfree = true\n')
    (tmp_path / "child.toml").write_text('extends = "base.toml"\n[method]\nname = "pams"\n')
    assert read_recipe(tmp_path / "child.toml") == {"method": {"name": "pams"}}


def test_a_circle_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "b.toml"\n')
    (tmp_path / "b.toml").write_text('extends = "a.toml"\n')
    with pytest.raises(InputError, match="extends itself"):
        read_recipe(tmp_path / "a.toml")


def test_broken_toml_is_one_line(tmp_path):
    (tmp_path / "a.toml").write_text("[run\n")
    with pytest.raises(InputError, match="is not TOML"):
        read_recipe(tmp_path / "a.toml")


def test_overrides_are_read_as_toml_and_else_as_text():
    tables = apply_overrides({"run": {"batch": 8}}, ["run.batch=4", "method.name=pams", "data.folders=['a', 'b']"])
    assert tables == {"run": {"batch": 4}, "method": {"name": "pams"}, "data": {"folders": ["a", "b"]}}


@pytest.mark.parametrize("text", ["run.batch", "batch=3", "run.batch.x=3", "=3"])
def test_overrides_of_another_form_are_refused(text):
    with pytest.raises(UsageError, match="cannot read --set"):
        apply_overrides({"run": {"batch": 8}}, [text])


def test_places_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("ODM_DATA", "/somewhere")
    assert str(expand_places("{data}/train")) == "/somewhere/train"
    monkeypatch.delenv("ODM_DATA")
    assert str(expand_places("{data}/train")) == "../shared/data/train"


@pytest.mark.parametrize(
    ("override", "table"),
    [
        ("bits=w2a2", {"quantization": {"body": "w2a2"}}),
        ("bits=4", {"quantization": {"body": "4"}}),
        ("method='lsq'", {"method": {"name": "lsq"}}),
        ("network = rdn", {"network": {"name": "rdn"}}),
    ],
)
def test_what_is_said_most_has_a_short_form(override, table):
    assert apply_overrides({}, [override]) == table


@pytest.mark.parametrize(
    "overrides", [["method=ddtb", "method.gate_start=5"], ["method.gate_start=5", "method.name=ddtb"]]
)
def test_another_method_drops_the_options_of_the_recipe_and_keeps_those_set_with_it(overrides):
    tables = {"method": {"name": "odm_v2", "free": True}}
    assert apply_overrides(tables, overrides) == {"method": {"name": "ddtb", "gate_start": 5}}
    assert tables == {"method": {"name": "odm_v2", "free": True}}


def test_the_same_method_keeps_its_options():
    tables = {"method": {"name": "odm_v2", "free": True}}
    assert apply_overrides(tables, ["method=odm_v2"]) == tables


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("batch=3", "did you mean run.batch=3?"),
        ("iteration=3", "did you mean run.iterations=3?"),
        ("bit=w2a2", "did you mean bits=w2a2?"),
        ("metod=lsq", "did you mean method=lsq?"),
        ("zzz=3", "write --set section.key=value"),
    ],
)
def test_a_setting_without_its_section_is_told_the_nearest_one(text, fix):
    with pytest.raises(UsageError) as error:
        apply_overrides({}, [text])
    assert fix in str(error.value)
    assert "\n" not in str(error.value)
