import pytest

from odm_deploy import errors


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.OdmError, 1),
        (errors.InputError, 1),
        (errors.BuildError, 1),
        (errors.UsageError, 2),
        (errors.GateError, 3),
        (errors.MissingError, 4),
    ],
)
def test_each_kind_has_its_documented_exit_code(error, exit_code):
    assert error.exit_code == exit_code
    assert issubclass(error, errors.OdmError)
    assert error.__name__ in (errors.__doc__ or "")


def test_every_error_is_in_the_tree_drawn_above_them():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.OdmError)]
    for kind in kinds:
        assert f"{kind.__name__}  " in (errors.__doc__ or "")


def test_says_what_why_and_how_to_fix_it_in_that_order():
    error = errors.InputError("cannot read x", why="it ends after 5 bytes", fix="copy it again")
    assert str(error) == "cannot read x: it ends after 5 bytes; copy it again"
    assert (error.what, error.why, error.fix) == ("cannot read x", "it ends after 5 bytes", "copy it again")


def test_leaves_out_what_is_not_known():
    assert str(errors.GateError("too far")) == "too far"
    assert str(errors.GateError("too far", fix="stay")) == "too far; stay"
