"""The memory of one snapshot: files in a directory that lies in memory, mapped by the worker that writes them.

    STEM.data  the bytes        STEM.head  published last, by a rename        STEM.sums  checksums, some time later

Guarantee: whoever is killed whenever, a slot with a head has all the bytes that its head speaks of; a slot whose bytes
are being changed has none. A reader that shares no lock with the writer looks at the head before and after.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmtrain_trainer.checkpoint.manifest import Damaged, digest
from llmtrain_trainer.flash import header as headers
from llmtrain_trainer.flash.header import CHUNK, Header

DATA: Final = ".data"
HEAD: Final = ".head"
SUMS: Final = ".sums"
_POPULATE_READ: Final = 22  # MADV_POPULATE_READ and _WRITE: Python 3.11 has no names for them
_POPULATE_WRITE: Final = 23
_NEW: Final = ".new"
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class StoreFull(Exception):  # noqa: N818 - it says what happened
    """There is not enough memory in the store. `needed` in bytes."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"{needed} more bytes are needed")
        self.needed = needed


@dataclass(frozen=True, slots=True)
class Held:
    """A snapshot that lies complete in a store. `mark` is its head's digest: another snapshot has another."""

    stem: Path
    header: Header
    mark: str

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.stem.name} (step {self.header.edition.step} of rank {self.header.rank})"

    @property
    def stands(self) -> bool:
        """Whether it is still there, after it was read."""
        try:
            return _mark(_head_of(self.stem)) == self.mark
        except FileNotFoundError:
            return False


class Slot:
    """Room for a snapshot, for its one writer."""

    def __init__(self, stem: Path) -> None:
        self.stem = stem
        self._memory = memoryview(b"")

    def reserve(self, size: int) -> None:
        """Have room for `size` bytes, all of it touched: a first copy into untouched pages takes ten times as long.

        What the slot holds stays, as far as it has room. Raises `StoreFull`.
        """
        if len(self._memory) >= size:
            return
        file = os.open(self.stem.with_suffix(DATA), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(file).st_size != size:
                self.withdraw()
            _allocate(file, size)
            mapping = mmap.mmap(file, size) if size else None
        finally:
            os.close(file)
        self._memory = memoryview(mapping) if mapping else memoryview(b"")
        if mapping:
            _touch(self._memory)

    @property
    def memory(self) -> memoryview:
        """As much as was reserved, writable."""
        return self._memory

    @property
    def size(self) -> int:
        """Bytes of the data file, 0 if there is none."""
        try:
            return self.stem.with_suffix(DATA).stat().st_size
        except FileNotFoundError:
            return 0

    def withdraw(self) -> None:
        """From now on the bytes may change."""
        for suffix in (HEAD, SUMS):
            self.stem.with_suffix(suffix).unlink(missing_ok=True)

    def publish(self, header: Header, encoded: bytes) -> Held:
        """The bytes are there. `encoded` is the header's file."""
        _put(self.stem.with_suffix(HEAD), encoded)
        return Held(self.stem, header, _mark(encoded))

    def remove(self) -> None:
        """Give the memory back."""
        self._memory = memoryview(b"")
        remove(self.stem)


def held(stem: Path) -> Held | None:
    """What the slot holds, None if nothing. Raises `Damaged`, `NewerFormat`."""
    try:
        data = _head_of(stem)
    except FileNotFoundError:
        return None
    header = headers.decode(data, stem.name)
    try:
        size = stem.with_suffix(DATA).stat().st_size
    except FileNotFoundError as error:
        raise Damaged(stem.name, "its data is missing") from error
    if size < header.size:
        raise Damaged(stem.name, f"its data ends {header.size - size} bytes early")
    return Held(stem, header, _mark(data))


def read_into(snapshot: Held, offset: int, into: memoryview) -> int:
    """Bytes of the data; how many there were."""
    with snapshot.stem.with_suffix(DATA).open("rb", buffering=0) as file:
        return pread(file.fileno(), offset, into)


def view(stem: Path) -> memoryview:
    """The data, mapped and touched. Only to be read, and only while nobody makes the slot smaller."""
    with stem.with_suffix(DATA).open("r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return memoryview(b"")
        memory = memoryview(mmap.mmap(file.fileno(), size))
    _advise(memory, _POPULATE_READ)  # without it every page is a fault of its own
    return memory


def copy(source: memoryview, into: memoryview) -> None:
    """Copy bytes between mappings, as many as both have; other threads run meanwhile."""
    if into.nbytes:
        ctypes.memmove(_address(into), _address(source), into.nbytes)


def pread(file: int, offset: int, into: memoryview) -> int:
    """Bytes of an open data file; how many there were."""
    done = 0
    while done < len(into):
        count = os.preadv(file, [into[done:]], offset + done)
        if not count:
            break
        done += count
    return done


def put_sums(snapshot: Held, digests: list[str]) -> None:
    """Keep the checksums of the snapshot's chunks of `header.CHUNK` bytes."""
    content = json.dumps({"mark": snapshot.mark, "chunks": digests}, separators=(",", ":")).encode()
    _put(snapshot.stem.with_suffix(SUMS), digest(content).encode() + b"\n" + content)


def sums(snapshot: Held) -> list[str] | None:
    """The checksums of this very snapshot, None as long as nobody has computed them. Raises `Damaged`, also if they are
    of another snapshot: then nobody can say whose the data are."""
    path = snapshot.stem.with_suffix(SUMS)
    try:
        stored, _, content = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if digest(content).encode() != stored:
        raise Damaged(path.name, "the checksums do not have their digest")
    found = json.loads(content)
    if found["mark"] != snapshot.mark:
        raise Damaged(path.name, "the checksums are of another snapshot")
    digests: list[str] = found["chunks"]
    return digests


def has_sums(snapshot: Held) -> bool:
    """Whether there are intact checksums of this very snapshot."""
    try:
        return sums(snapshot) is not None
    except Damaged:
        return False


def prove(snapshot: Held) -> list[str] | None:
    """The checksums, computed if there were none; None if it went away meanwhile. Raises `Damaged`."""
    digests = sums(snapshot)
    return digests if digests is not None else compute(snapshot)


def compute(snapshot: Held) -> list[str] | None:
    """The checksums of the data as they are now, which are kept; None if it went away meanwhile."""
    room = memoryview(bytearray(CHUNK))
    digests: list[str] = []
    for start in range(0, snapshot.header.size, CHUNK):
        part = room[: min(CHUNK, snapshot.header.size - start)]
        if read_into(snapshot, start, part) < len(part):
            return None
        digests.append(digest(part))
    if not snapshot.stands:
        return None
    put_sums(snapshot, digests)
    return digests


def remove(stem: Path) -> None:
    """All that is in a slot, and its memory."""
    for suffix in (HEAD, SUMS, DATA):
        stem.with_suffix(suffix).unlink(missing_ok=True)


def _mark(data: bytes) -> str:
    return data.partition(b"\n")[0].decode()


def _head_of(stem: Path) -> bytes:
    return stem.with_suffix(HEAD).read_bytes()


def _put(path: Path, data: bytes) -> None:
    """A file that is there whole or not at all, for whoever reads in this machine's life."""
    new = path.with_name(path.name + _NEW)
    try:
        new.write_bytes(data)
        new.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        if error.errno != errno.ENOSPC:
            raise
        raise StoreFull(len(data)) from error


def _allocate(file: int, size: int) -> None:
    """Have the pages now: without them a write through the mapping would be the process's death."""
    held_already = os.fstat(file).st_size
    try:
        if size:
            os.posix_fallocate(file, 0, size)
    except OSError as error:
        os.ftruncate(file, held_already)
        if error.errno != errno.ENOSPC:
            raise
        raise StoreFull(size - held_already) from error
    os.ftruncate(file, size)


def _touch(memory: memoryview) -> None:
    # By way of ctypes, which lets go of the interpreter: training goes on meanwhile.
    if _advise(memory, _POPULATE_WRITE):
        for page in range(0, len(memory), mmap.PAGESIZE):  # a kernel before 5.14
            memory[page] = memory[page]


def _advise(memory: memoryview, advice: int) -> int:
    code: int = _LIBC.madvise(ctypes.c_void_p(_address(memory)), ctypes.c_size_t(len(memory)), advice)
    return code


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
