"""Where tests find images and weights that are too big, or not ours, to lie in the repository.

`ODM_DATA` and `ODM_WEIGHTS` name them; without these the folder `shared` beside the checkout is tried. Tests that need
them skip, saying so, where they are absent; what must run everywhere uses `samples`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core to itself: before anything imports torch, here and in the processes that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


def _external_root(variable: str, folder: str, holds: str) -> Path:
    root = Path(os.environ.get(variable) or REPOSITORY.parent / "shared" / folder)
    if not root.is_dir():
        pytest.skip(f"{holds} not found in {root}; set {variable} to the folder that holds them")
    return root


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with `benchmark/{Set5,Set14}` and `train/...`; skips where absent."""
    return _external_root("ODM_DATA", "data", "benchmark and training images")


@pytest.fixture(scope="session")
def weights_root() -> Path:
    """Folder with float weights such as `edsr_baseline_x4.pt`; skips where absent."""
    return _external_root("ODM_WEIGHTS", "weights", "float weights")


@pytest.fixture(scope="session")
def samples() -> Path:
    """The repository's own sample images, laid out like a benchmark set: `HR/`, `LR_bicubic/X4/`."""
    return REPOSITORY / "tests" / "data" / "samples"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of small checked-in expected values."""
    return REPOSITORY / "tests" / "golden"
