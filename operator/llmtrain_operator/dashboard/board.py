"""The newest look at the jobs, for a bounded number of readers in threads of their own.

Keeps nothing but the newest look: a reader that is slow misses what lay between, and makes nothing queue up.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from llmtrain_operator.dashboard.look import Look, News, news


class Board:
    """One writer shows looks, readers follow them. `on_reader` is called in the thread of each reader that comes."""

    def __init__(self, on_reader: Callable[[], None] = lambda: None) -> None:
        self._changed = threading.Condition()
        self._look, self._closed = Look(), False
        self._readers: Counter[str] = Counter()
        self._on_reader = on_reader

    @property
    def wanted(self) -> frozenset[str] | None:
        """The keys of the jobs whose pages are read; None while nobody reads anything."""
        with self._changed:
            return frozenset(filter(None, self._readers)) if self._readers else None

    def show(self, look: Look) -> None:
        """Replace the look."""
        with self._changed:
            if look != self._look:
                self._look = look
                self._changed.notify_all()

    def close(self) -> None:
        """Let go of all readers, also of those that are still to come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def read(self, job: str, patience: float) -> Iterator[News | None]:
        """First everything, then what changes; None after `patience` seconds without a change.

        `job` is the key of a job whose page is read too, or empty. Ends when the board is closed.
        """
        with self._counted(job):
            told = Look()
            while True:
                with self._changed:
                    self._changed.wait_for(partial(self._is_awaited, told, job), patience)
                    if self._closed:
                        return
                    look = self._look if self._has_more(told, job) else told
                yield news(told, look, job) if look is not told else None
                told = look

    def _is_awaited(self, told: Look, job: str) -> bool:
        return self._closed or self._has_more(told, job)

    def _has_more(self, told: Look, job: str) -> bool:
        return self._look is not told and self._look.serves(job)

    @contextmanager
    def _counted(self, job: str) -> Iterator[None]:
        with self._changed:
            self._readers[job] += 1
        self._on_reader()
        try:
            yield
        finally:
            with self._changed:
                self._readers[job] -= 1
                self._readers = +self._readers  # forgets those without readers
