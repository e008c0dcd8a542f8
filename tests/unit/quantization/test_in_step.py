"""One computation waits for another, in order, and both end together however they end."""

from __future__ import annotations

import threading

import pytest

from odm_deploy.quantization.in_step import in_step


def test_everything_arrives_in_order_and_no_more_than_two_wait():
    made = []

    def produce(put):
        for number in range(50):
            made.append(number)
            put(number)

    for taken, number in enumerate(in_step(produce)):
        assert number == taken
        assert len(made) <= taken + 3
    assert len(made) == 50


def test_what_the_producer_raises_arrives_behind_what_it_made():
    def produce(put):
        put(1)
        raise ValueError("out of paper")

    stream = in_step(produce)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="out of paper"):
        next(stream)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_ending_early_stops_the_producer(taken):
    before = threading.active_count()
    made = []

    def produce(put):
        for number in range(1000):
            made.append(number)
            put(number)

    stream = in_step(produce)
    for _ in range(taken):
        next(stream)
    stream.close()
    assert threading.active_count() == before
    assert len(made) <= taken + 3


def test_an_error_of_the_consumer_stops_the_producer():
    before = threading.active_count()

    def consume():
        for number in in_step(lambda put: [put(each) for each in range(1000)]):
            if number == 2:
                raise KeyError(number)

    with pytest.raises(KeyError):
        consume()
    assert threading.active_count() == before
