"""Every error this package raises on purpose, each with the exit code the command line ends with.

    OdmError                 1  something failed
    ├── InputError           1  a file or value handed in cannot be used
    ├── BuildError           1  an engine builder refused, crashed or ran out of time
    ├── UsageError           2  the call itself makes no sense (wrong option, impossible combination)
    ├── GateError            3  a check ran to its end and its threshold was not met
    └── MissingError         4  this machine lacks something: a package, a GPU, a runtime

An error says what happened, why (with the values) and what to do, in that order:

    >>> raise InputError("cannot read model.pt", why="the file ends after 5000 bytes", fix="copy it again")
"""

from __future__ import annotations

_LONGEST = 1000
"""Characters of each part of an error: values of foreign files go into it, and may be of any length."""


def _bounded(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class OdmError(Exception):
    """Base of all deliberate errors.

    Args:
        what: what happened, one clause, with the file, layer or option it happened to.
        why: the cause, with the values that show it.
        fix: what to do about it; a command when there is one.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        what, why, fix = map(_bounded, (what, why, fix))
        self.what, self.why, self.fix = what, why, fix
        super().__init__(what + (f": {why}" if why else "") + (f"; {fix}" if fix else ""))


class InputError(OdmError):
    """A file or value handed in cannot be used."""


class BuildError(OdmError):
    """An engine builder refused the graph, crashed, or ran out of time."""


class UsageError(OdmError):
    """The call itself makes no sense: an unknown option value or an impossible combination."""

    exit_code = 2


class GateError(OdmError):
    """A check ran to its end and its threshold was not met."""

    exit_code = 3


class MissingError(OdmError):
    """This machine lacks something the command needs: a package, a GPU, a runtime."""

    exit_code = 4
