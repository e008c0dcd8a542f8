from dataclasses import dataclass, field

import pytest

from odm_deploy.errors import InputError, UsageError
from training.config import apply_overrides, expand_places, from_tables, read_recipe
from training.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Inner:
    count: int = 1
    rate: float = 0.5
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    title: str
    inner: Inner = field(default_factory=Inner)


def test_nested_tables_become_dataclasses():
    made = from_tables(Outer, {"title": "a", "inner": {"count": 3, "names": ["x", "y"]}})
    assert made == Outer("a", Inner(3, 0.5, ("x", "y")))


def test_whole_numbers_are_floats_where_a_float_is_asked_for():
    assert from_tables(Inner, {"rate": 2}).rate == 2.0


@pytest.mark.parametrize(
    ("tables", "telling"),
    [
        ({"title": "a", "inner": {"cuont": 3}}, "unknown key inner.cuont.*did you mean count"),
        ({"title": "a", "inner": {"count": 3.5}}, "inner.count = 3.5.*whole number"),
        ({"title": "a", "inner": {"count": True}}, "inner.count = True.*whole number"),
        ({"title": "a", "inner": {"names": "x"}}, "inner.names = 'x'.*list"),
        ({"title": "a", "inner": {"names": [1]}}, r"inner.names\[0\] = 1.*text"),
        ({"title": "a", "inner": 3}, "inner is a section"),
        ({}, "lacks title"),
    ],
)
def test_what_does_not_fit_is_named(tables, telling):
    with pytest.raises(InputError, match=telling):
        from_tables(Outer, tables)


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
    "override", ["run.batch=0", "run.iterations=-1", "optimizer.ema_decay=1.0", "run.seed=-1", "data.patch=0"]
)
def test_values_out_of_range_are_refused(override, tmp_path):
    (tmp_path / "a.toml").write_text("")
    with pytest.raises(UsageError, match=override.split("=")[0]):
        load_recipe(tmp_path / "a.toml", [override])


def test_a_float_body_is_a_usage_error():
    with pytest.raises(UsageError, match="body is float"):
        from_tables(Recipe, {"quantization": {"body": "float"}}).quantization.policy()
