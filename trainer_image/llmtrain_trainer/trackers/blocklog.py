"""The log files in which Weights & Biases and SwanLab keep a run: records in blocks of 32 KiB, as LevelDB's log has
them. Read while they are being written, to know what a run would be left with. Pure.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

_BLOCK: Final = 32 * 1024
_HEAD: Final = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_SEEDS: Final = [zlib.crc32(bytes([kind])) for kind in range(5)]


class BlockLog:
    """Reads a file from its beginning; each call of `records` goes on where the last one met the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = _HEAD.size  # behind the file's own header, which is as long as a record's

    def records(self) -> Iterator[bytes]:
        """The whole records that are there by now and were not yet given. Ends at the first damaged one."""
        while True:
            record, end = self._record(self._at)
            if record is None:
                return
            self._at = end
            yield record

    def _record(self, at: int) -> tuple[bytes | None, int]:
        parts = bytearray()
        while True:
            if _BLOCK - at % _BLOCK < _HEAD.size:
                at += _BLOCK - at % _BLOCK
            self._file.seek(at)
            head = self._file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return None, at
            checksum, length, kind = _HEAD.unpack(head)
            data = self._file.read(length)
            if not _FULL <= kind <= _LAST or len(data) < length or zlib.crc32(data, _SEEDS[kind]) != checksum:
                return None, at
            at += _HEAD.size + length
            parts += data
            if kind in (_FULL, _LAST):
                return bytes(parts), at
