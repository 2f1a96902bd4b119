"""Batches assembled ahead in a thread."""

from __future__ import annotations

import threading
import traceback

import pytest

from llmtrain_trainer.data import prefetch


def prefetching_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_items_come_in_order_and_then_it_ends():
    """Prefetching changes nothing about the sequence, and its thread is gone at the end."""
    assert list(prefetch(range(100), depth=3)) == list(range(100))
    assert not prefetching_threads()


def test_the_next_item_is_made_while_the_consumer_works():
    """With depth 1 exactly one further item is taken before the consumer asks for it."""
    asked = [threading.Event() for _ in range(4)]

    def source():
        for number, event in enumerate(asked):
            event.set()
            yield number

    with prefetch(source()) as items:
        assert next(items) == 0
        assert asked[1].wait(10)
        assert not asked[2].is_set()


def test_an_exception_reaches_the_consumer_with_the_traceback_of_its_origin():
    """Items before the failure are delivered; the error names the function that raised; afterwards there is no more."""

    def breaks_at_one():
        yield 0
        raise KeyError("broken shard")

    items = prefetch(breaks_at_one())
    assert next(items) == 0
    with pytest.raises(KeyError, match="broken shard") as caught:
        next(items)
    assert "breaks_at_one" in "".join(traceback.format_exception(caught.value))
    assert list(items) == []


def test_waiting_is_measured():
    """`waited` is the time that the last next() was blocked."""
    release = threading.Event()

    def source():
        release.wait(10)
        yield 1

    with prefetch(source()) as items:
        threading.Timer(0.05, release.set).start()
        assert next(items) == 1
        assert 0.01 < items.waited < 10


def test_closing_early_ends_the_thread():
    """An endless source does not keep the process alive."""
    with prefetch(iter(int, 1), depth=2) as items:
        assert next(items) == 0
    assert not prefetching_threads()
    assert list(items) == []
