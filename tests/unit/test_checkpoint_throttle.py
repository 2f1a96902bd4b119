"""A limit on how fast bytes go out."""

import time

from llmtrain_trainer.checkpoint.throttle import Throttle


def test_without_a_limit_the_parts_are_handed_on():
    """As they are."""
    parts = [memoryview(b"ab"), memoryview(b"c")]
    assert list(Throttle(None).limit(parts)) == parts


def test_bytes_take_their_time_and_stay_the_same():
    """Four MiB at twenty a second: a fifth of a second, less the piece that goes at once."""
    data = memoryview(bytes(range(256)) * 2**14)
    began = time.monotonic()
    out = b"".join(Throttle(20 * 2**20).limit([data]))
    assert time.monotonic() - began >= 0.14
    assert out == data
