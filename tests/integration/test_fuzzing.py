"""Every reader of strangers' files against its kept corpus and some hundred mutations of it; `make fuzz` goes on."""

from __future__ import annotations

import pytest

from tests.tool_modules import load_tool

load_tool("toolbox")
from fuzzing import corpus, plain, targets  # noqa: E402

MUTATIONS = 120


# PyTorch 2.14 leaves a view of an archive behind that it could not read.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.BytesIO:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("target", targets.TARGETS)
def test_kept_inputs_break_nothing(target):
    kept = corpus.inputs(target)
    assert kept
    for data in kept:
        targets.survives(targets.TARGETS[target], data)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_mutations_of_them_break_nothing(target):
    found = plain.fuzz(target, seed=7, count=MUTATIONS)
    assert found.executions == MUTATIONS
    assert list(found.by_place) == []


def test_a_reader_that_breaks_is_found(monkeypatch):
    def broken(data: bytes) -> None:
        if len(data) % 3:
            raise KeyError("scale")

    monkeypatch.setitem(targets.TARGETS, "manifest", broken)
    (place,) = plain.fuzz("manifest", seed=1, count=20).by_place
    assert place.startswith("KeyError at")
