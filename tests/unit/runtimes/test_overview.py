"""The overview in the package's docstring names every module, once."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from odm_deploy import runtimes


def test_overview_is_complete():
    rows = re.findall(r"^ {4}\S.*?  +(\S.*)$", runtimes.__doc__, re.MULTILINE)
    modules = {path.stem for path in Path(runtimes.__file__).parent.glob("*.py")} - {"__init__"}
    assert Counter(name for row in rows for name in row.split()) == Counter(modules)
