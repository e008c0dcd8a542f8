"""The command that adds an extra to the copy of this package that is running, however it was installed.

The package is on no index, so a name alone works only where pip finds it installed. PEP 610 has pip write down where a
package came from (`direct_url.json`); what runs from a clone without being installed is known by its pyproject.toml.
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

_DISTRIBUTION = "odm-deploy"


def install_extra(*extras: str) -> str:
    """The shell command that installs these extras, such as `cpu`, beside what is here already.

    >>> install_extra("cpu")      # from a wheel, which brought its list of extras along     # doctest: +SKIP
    "pip install 'odm-deploy[cpu]'"
    >>> install_extra("cpu")      # from a clone                                             # doctest: +SKIP
    "pip install -e '/home/me/odm-deploy[cpu]'"
    """
    names = f"[{','.join(extras)}]"
    clone, editable = _clone()
    if clone is None:
        # Already installed: pip reads the extras there and asks no index for the package itself.
        return f"pip install {shlex.quote(_DISTRIBUTION + names)}"
    return f"pip install {'-e ' if editable else ''}{shlex.quote(f'{clone}{names}')}"


def install_spandrel() -> str:
    """The shell command that installs spandrel beside the torch that is here.

    Its dependencies would bring torchvision, which is not needed, and that the torch of its own version instead.
    """
    return "pip install --no-deps spandrel && pip install einops"


def _clone() -> tuple[Path | None, bool]:
    """The clone that this copy runs from or was installed from, and whether it runs from there."""
    here = Path(__file__).resolve().parent.parent
    if (here / "pyproject.toml").is_file():
        return here, True
    source = _source_folder()
    return source if source is not None and (source / "pyproject.toml").is_file() else None, False


def _source_folder() -> Path | None:
    """The folder that pip installed from; None for wheels, indexes and what pip did not install."""
    try:
        text = importlib.metadata.distribution(_DISTRIBUTION).read_text("direct_url.json")
        origin = json.loads(text) if text else {}
        return Path(unquote(urlsplit(origin["url"]).path)) if "dir_info" in origin else None
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return None
