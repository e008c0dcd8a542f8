"""From tables to settings: what does not fit is named, and values out of range are refused."""

from dataclasses import dataclass, field

import pytest

from odm_deploy.errors import InputError, UsageError
from training.config import from_tables
from training.recipe import Recipe
from training.recipe_files import load_recipe


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
        ({"title": "a", "inner": {"names": 3}}, "inner.names = 3.*list"),
        ({"title": "a", "inner": {"names": [1]}}, r"inner.names\[0\] = 1.*text"),
        ({"title": "a", "inner": 3}, "inner is a section"),
        ({}, "lacks title"),
    ],
)
def test_what_does_not_fit_is_named(tables, telling):
    with pytest.raises(InputError, match=telling):
        from_tables(Outer, tables)


@pytest.mark.parametrize(
    "override", ["run.batch=0", "run.iterations=-1", "optimizer.ema_decay=1.0", "run.seed=-1", "data.patch=0"]
)
def test_values_out_of_range_are_refused(override, tmp_path):
    (tmp_path / "a.toml").write_text("")
    with pytest.raises(UsageError, match=override.split("=")[0]):
        load_recipe(tmp_path / "a.toml", [override])


@pytest.mark.parametrize(
    "override",
    [
        *("run.iterations=banana", "run.batch=2.5", "run.nothing=1", "nothing.at_all=1", "run={}", "run.seed=true"),
        *("optimizer.learning_rate=inf", "optimizer.learning_rate=nan", f"optimizer.learning_rate={'9' * 400}"),
        *("data.folders=3", "optimizer.rates.steps=fast", "quantization.profile=best", "network.config=3"),
        *("method.nothing=1", "method.skt_weight=banana", "bits=w9a9", "method=nothing"),
    ],
)
def test_what_is_wrong_in_an_override_is_a_usage_error_and_in_the_recipe_an_input_error(override, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("")
    with pytest.raises(UsageError):
        load_recipe(path, ["run.log_every=5", override])
    path.write_text("[run]\nbatch = 2.5\n")
    with pytest.raises(InputError, match=r"run.batch = 2\.5"):
        load_recipe(path, ["run.log_every=5"])
    assert load_recipe(path, ["run.batch=2"]).run.batch == 2


def test_a_float_body_is_a_usage_error():
    with pytest.raises(UsageError, match="body is float"):
        from_tables(Recipe, {"quantization": {"body": "float"}}).quantization.policy()
