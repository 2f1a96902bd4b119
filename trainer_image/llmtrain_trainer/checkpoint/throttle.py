"""A limit on how fast bytes go out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final

_PIECE: Final = 2**20


class Throttle:
    """So many bytes per second on average, None: no limit. For one writer at a time."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate

    def limit(self, parts: Iterable[memoryview]) -> Iterator[memoryview]:
        """The same bytes, each part of them not before its time."""
        if self._rate is None:
            yield from parts
            return
        began, sent = time.monotonic(), 0
        for part in parts:
            for at in range(0, len(part), _PIECE):
                piece = part[at : at + _PIECE]
                ahead = sent / self._rate - (time.monotonic() - began)
                if ahead > 0:
                    time.sleep(ahead)
                sent += len(piece)
                yield piece
