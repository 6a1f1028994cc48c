"""Items made ahead by a thread: the same order, bounded, errors in their place, and no thread left behind."""

from __future__ import annotations

import itertools
import threading

import pytest

from jora_core.data.prefetch import prefetched


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_order_is_kept_and_the_end_is_the_end():
    with prefetched(iter(range(1000)), depth=3) as ready:
        assert list(ready) == list(range(1000))
    assert not workers()


def test_no_more_is_made_than_fits():
    made: list[int] = []
    third = threading.Event()

    def items():
        for i in itertools.count():
            made.append(i)
            if i == 3:
                third.set()
            yield i

    with prefetched(items(), depth=2) as ready:
        assert next(ready) == 0
        # Item 0 is taken, two wait, and one more is in the making.
        assert third.wait(30)
    assert made == [0, 1, 2, 3] and not workers()


def test_an_error_comes_at_its_place():
    def items():
        yield 1
        yield 2
        raise ValueError("third")

    with prefetched(items()) as ready:
        assert [next(ready), next(ready)] == [1, 2]
        with pytest.raises(ValueError, match="third"):
            next(ready)
    assert not workers()


def test_an_error_of_the_consumer_ends_the_thread():
    with pytest.raises(KeyError), prefetched(itertools.count()) as ready:
        next(ready)
        raise KeyError("consumer")
    assert not workers()
