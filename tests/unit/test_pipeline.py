"""Stages in threads: order, errors, bounded memory, and nothing left running."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from odm_deploy.imaging.tiling import tiled_bands
from odm_deploy.pipeline import ahead, map_ahead


def pipeline_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "odm-deploy pipeline"]


def test_items_come_in_order_through_several_stages():
    doubled = map_ahead(lambda item: 2 * item, ahead(range(50)))
    assert list(doubled) == list(range(0, 100, 2))
    squares = map_ahead(lambda item: item * item, range(3, 50), depth=3)
    assert list(squares) == [item * item for item in range(3, 50)]
    assert not pipeline_threads()


def test_the_next_item_is_made_while_this_one_is_used():
    made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        made.set()
        yield 2

    stage = ahead(items())
    assert next(stage) == 1
    assert made.wait(10)
    stage.close()


def test_no_more_than_depth_items_wait():
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            made.append(item)
            yield item

    stage = ahead(items(), depth=3)
    assert next(stage) == 0
    time.sleep(0.3)
    assert len(made) <= 5
    stage.close()
    assert not pipeline_threads()


def test_an_error_arrives_after_the_items_before_it():
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    seen: list[int] = []
    with pytest.raises(ValueError, match="broken"):
        seen.extend(ahead(ahead(items())))
    assert not pipeline_threads()


def test_an_error_of_the_work_arrives_after_the_results_before_it():
    def fail(item: int) -> int:
        if item == 2:
            raise ValueError("item 2 is broken")
        return item

    seen: list[int] = []
    with pytest.raises(ValueError, match="item 2 is broken"):
        seen.extend(map_ahead(fail, range(5)))
    assert seen == [0, 1]
    assert not pipeline_threads()


def test_work_without_end_can_be_left_early():
    results = map_ahead(lambda item: item, range(10**9))
    assert next(results) == 0
    results.close()
    assert not pipeline_threads()


def test_leaving_early_closes_every_stage():
    closed: list[str] = []

    def source() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append("source")

    def stage() -> Iterator[int]:
        inner = ahead(source())
        try:
            yield from inner
        finally:
            inner.close()
            closed.append("stage")

    outer = ahead(stage())
    assert next(outer) == 0
    outer.close()
    assert closed == ["source", "stage"]
    assert not pipeline_threads()


@pytest.mark.parametrize("in_work", [True, False])
def test_closing_ends_at_the_next_tile(in_work):
    """A row of tiles may take minutes: Ctrl-C waits for one of them."""
    begun, wanted, tiles = threading.Event(), threading.Event(), []

    def run(pixels):
        tiles.append(pixels)
        begun.set()
        assert wanted.wait(10)
        return pixels

    def bands(_=None):
        return tiled_bands(run, np.zeros((1, 3, 8, 80), np.uint8), tile=8, overlap=0, scale=1)

    def images():
        yield np.zeros(1)
        yield from bands()

    stage = map_ahead(lambda number: list(bands()) if number else number, range(2)) if in_work else ahead(images())
    next(stage)
    assert begun.wait(10)
    threading.Timer(0.3, wanted.set).start()
    stage.close()
    assert len(tiles) == 1
    assert not pipeline_threads()
