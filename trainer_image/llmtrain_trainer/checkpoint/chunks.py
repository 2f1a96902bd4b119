"""Reading what is stored in chunks, each under a checksum of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmtrain_trainer.checkpoint.manifest import Damaged, digest

Fetch = Callable[[int, memoryview], int]
"""Reads the bytes from an offset on into memory; how many there were."""


class Chunks:
    """`size` bytes of data called `name`, in chunks of `chunk` bytes with the checksums `digests`.

    Nothing that it hands out is unproved; without `digests` (None) whoever made the data vouches for it.
    """

    def __init__(self, name: str, size: int, chunk: int, digests: Sequence[str] | None, fetch: Fetch) -> None:
        self.name, self.size, self.chunk = name, size, chunk
        self._digests, self._fetch_bytes = digests, fetch
        self._kept = -1
        self._kept_data = memoryview(b"")

    @property
    def count(self) -> int:
        """How many chunks."""
        return -(-self.size // self.chunk)

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the data from byte `offset` on, checking every chunk that it touches.

        Whole chunks go straight into `into`. The chunk that was read last is kept, so reads in ascending order read
        each chunk once. Not for several threads at once. Raises `Damaged` (what is in `into` is then worthless), what
        `fetch` raises, and ValueError for a range outside the data.
        """
        if not 0 <= offset <= offset + into.nbytes <= self.size:
            raise ValueError(f"{self.name} has {self.size} bytes of data, not {offset + into.nbytes}")
        left = into.cast("B") if into.nbytes else memoryview(b"")
        while left:
            number, inside = divmod(offset, self.chunk)
            length = self._length(number)
            if self._digests is None:
                taken = len(left)
                self._read(offset, left, self.name)
            elif not inside and len(left) >= length:
                taken = self._whole(number, len(left))
                self._fetch_run(number, left[:taken])
            else:
                part = self._cached(number)[inside : inside + len(left)]
                taken = len(part)
                left[:taken] = part
            offset, left = offset + taken, left[taken:]

    def damage(self) -> tuple[str, ...]:
        """Every chunk that is not what it was, each as `chunk 3 of 9: why`; empty if all is well."""
        found = []
        room = memoryview(bytearray(min(self.chunk, self.size)))
        for number in range(self.count):
            try:
                self._fetch(number, room[: self._length(number)])
            except Damaged as damaged:
                found.append(damaged.why)
        return tuple(found)

    def _whole(self, number: int, room: int) -> int:
        """Bytes of the chunks from `number` on that fit into `room` as a whole."""
        rest = self.size - number * self.chunk
        return rest if rest <= room else room // self.chunk * self.chunk

    def _fetch_run(self, number: int, into: memoryview) -> None:
        """Read whole chunks from `number` on, and prove them."""
        for at in range(0, len(into), self.chunk):
            self._fetch(number + at // self.chunk, into[at : at + self.chunk])

    def _length(self, number: int) -> int:
        return min(self.chunk, self.size - number * self.chunk)

    def _cached(self, number: int) -> memoryview:
        if number != self._kept:
            self._kept = -1
            if not self._kept_data:
                self._kept_data = memoryview(bytearray(min(self.chunk, self.size)))
            self._fetch(number, self._kept_data[: self._length(number)])
            self._kept = number
        return self._kept_data[: self._length(number)]

    def _fetch(self, number: int, into: memoryview) -> None:
        """Read chunk `number` into a place of its length, and prove what lies there then."""
        where = f"chunk {number + 1} of {self.count}"
        self._read(number * self.chunk, into, where)
        self._prove(number, into)

    def _prove(self, number: int, data: memoryview) -> None:
        if self._digests is not None and digest(data) != self._digests[number]:
            where = f"chunk {number + 1} of {self.count}"
            raise Damaged(self.name, f"{where}: its bytes do not have their checksum")

    def _read(self, offset: int, into: memoryview, where: str) -> None:
        count = self._fetch_bytes(offset, into)
        if count < len(into):
            raise Damaged(self.name, f"{where}: it ends {len(into) - count} bytes early")
