"""Assemble the next batches in a background thread while the current one is trained on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Generic, Self, TypeVar, cast

T = TypeVar("T")

_END: Final = object()


class Prefetch(Iterator[T], Generic[T]):
    """Iterates like `iterable`, `depth` items ahead of the consumer, all taken by one thread.

    `waited` is how long the last `next()` waited for data, in seconds. An exception of the iterable is raised by the
    `next()` that would have given the item, with the traceback of the thread. Close it (or leave the `with` block) to
    end the thread; that waits for an item being assembled.
    """

    def __init__(self, iterable: Iterable[T], depth: int = 1) -> None:
        if depth < 1:
            raise ValueError(f"depth is {depth}; it must be at least 1")
        self.waited = 0.0
        self._items = iter(iterable)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._ahead: deque[Future[T | object]] = deque(self._request() for _ in range(depth))

    def __next__(self) -> T:
        if not self._ahead:
            raise StopIteration
        started = time.perf_counter()
        try:
            item = self._ahead.popleft().result()
        except BaseException:
            self.close()
            raise
        self.waited = time.perf_counter() - started
        if item is _END:
            self.close()
            raise StopIteration
        self._ahead.append(self._request())
        return cast("T", item)

    def close(self) -> None:
        """End the thread; further `next()` say that there is no more. May be called again."""
        self._ahead.clear()
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _request(self) -> Future[T | object]:
        return self._thread.submit(next, self._items, _END)


def prefetch(iterable: Iterable[T], depth: int = 1) -> Prefetch[T]:
    """`iterable`, `depth` items ahead."""
    return Prefetch(iterable, depth)
