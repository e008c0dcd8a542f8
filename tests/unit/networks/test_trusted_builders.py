"""Nothing that a file names is imported, let alone called, unless the user has named it, too."""

from __future__ import annotations

import sys

import pytest

from odm_deploy.errors import InputError, UsageError
from odm_deploy.networks.trusted_builders import build_module, is_builder_path, trusting
from tests.foreign_networks import BUILT, Enlarger

HOME = "tests.foreign_networks"


@pytest.fixture(autouse=True)
def _count_anew():
    BUILT.clear()


def test_an_untrusted_builder_is_named_with_the_option_to_add() -> None:
    with pytest.raises(UsageError, match=rf"--trust {HOME}:Enlarger") as caught:
        build_module(f"{HOME}:Enlarger", {})
    assert caught.value.exit_code == 2
    assert BUILT == []


def test_an_untrusted_module_is_not_even_imported() -> None:
    sys.modules.pop("this", None)
    with pytest.raises(UsageError):
        build_module("this:Zen", {})
    assert "this" not in sys.modules


@pytest.mark.parametrize("name", ["Enlarger", "make_enlarger"])
def test_trusted_classes_and_annotated_functions_build(name: str) -> None:
    with trusting(f"{HOME}:{name}"):
        module = build_module(f"{HOME}:{name}", {"features": 5})
    assert isinstance(module, Enlarger)
    assert module.first.out_channels == 5


def test_trust_ends_with_its_block_and_holds_for_one_name() -> None:
    with trusting(f"{HOME}:Enlarger"), trusting(f"{HOME}:Enlarger"), pytest.raises(UsageError):
        build_module(f"{HOME}:make_enlarger", {"features": 5})
    with pytest.raises(UsageError):
        build_module(f"{HOME}:Enlarger", {})


def test_what_is_no_builder_of_networks_is_not_called_even_when_trusted(tmp_path) -> None:
    marker = tmp_path / "it ran"
    cases = {
        "os:system": {"command": f"touch '{marker}'"},
        "pathlib:Path.touch": {"self": marker},
        f"{HOME}:NotANetwork": {},
        f"{HOME}:says_nothing": {"features": 4},
        f"{HOME}:BUILT": {},
    }
    for path, arguments in cases.items():
        with trusting(path), pytest.raises(InputError, match="does not build networks"):
            build_module(path, arguments)
    assert BUILT == []
    assert not marker.exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"{HOME}:Missing", "has no Missing"),
        ("no_such_package_here:Net", "PYTHONPATH"),
        (f"{HOME}:make_enlarger", "unexpected keyword argument"),
    ],
)
def test_what_cannot_be_built_says_why(path: str, message: str) -> None:
    with trusting(path), pytest.raises(InputError, match=message):
        build_module(path, {"nonsense": 1})


@pytest.mark.parametrize("text", ["os.system", "a:b:c", "a/b:Net", "a b:Net", ":Net", "net:", "../x:Net", "a:b()"])
def test_other_texts_are_no_paths(text: str) -> None:
    assert not is_builder_path(text)
    with pytest.raises(UsageError, match=r"package\.module:Name"), trusting(text):
        pass


def test_a_spandrel_path_reaches_spandrels_classes_only() -> None:
    for path in ("spandrel.architectures.SPAN.sys:exit", "spandrel.architectures:os", "spandrel.util:KeyCondition"):
        with pytest.raises(UsageError, match="not trusted"):
            build_module(path, {})


@pytest.mark.parametrize(
    "line", ["raise SystemExit(3)", "import sys; sys.exit('usage: script')", "raise BaseException"]
)
def test_a_module_that_ends_the_program_is_an_error_like_others(line, tmp_path, monkeypatch) -> None:
    (tmp_path / "script_that_ends.py").write_text(f"{line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with trusting("script_that_ends:Net"), pytest.raises(InputError, match="cannot import script_that_ends"):
        build_module("script_that_ends:Net", {})


def test_a_module_named_as_a_file_is_told_its_name() -> None:
    path = "no_such_networks.py:Net"
    with trusting(path), pytest.raises(InputError, match=r"without its suffix: no_such_networks:Net$"):
        build_module(path, {})
