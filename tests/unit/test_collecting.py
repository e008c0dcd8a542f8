"""Garbage is collected rarely for a while, and as before afterwards, also after an error."""

from __future__ import annotations

import gc

import pytest

from odm_deploy.collecting import collecting_rarely


def test_thresholds_come_back():
    before = gc.get_threshold()
    with collecting_rarely():
        assert gc.get_threshold()[0] > before[0]
    assert gc.get_threshold() == before
    with pytest.raises(KeyError), collecting_rarely():
        raise KeyError
    assert gc.get_threshold() == before
