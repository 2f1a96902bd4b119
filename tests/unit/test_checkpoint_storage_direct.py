"""Writing past the page cache: what goes which way, and the same bytes whichever way it went."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

import pytest
import torch

from llmtrain_trainer.checkpoint.pieces import MASTER, Piece
from llmtrain_trainer.checkpoint.staging import Staging
from llmtrain_trainer.checkpoint.storage.direct import ALIGNMENT, write_synced


@pytest.fixture
def ways(monkeypatch):
    """(went past the cache, bytes) of each write that succeeded."""
    seen = []
    write = os.write

    def watched(file, data):
        count = write(file, data)
        seen.append((bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT), count))
        return count

    monkeypatch.setattr(os, "write", watched)
    return seen


def memory(length: int, shift: int = 0) -> memoryview:
    """Random bytes, `shift` bytes after the beginning of a page."""
    room = memoryview(mmap.mmap(-1, length + shift))
    room[shift:] = os.urandom(length)
    return room[shift:]


def test_whole_pages_go_past_the_cache_and_the_tail_does_not(tmp_path, ways):
    """As in a shard: chunks of the staged copy, then a last one and an index of any length."""
    parts = [memory(2 * ALIGNMENT), memory(ALIGNMENT), memory(100), memory(3)]
    write_synced(tmp_path / "a", parts)
    assert (tmp_path / "a").read_bytes() == b"".join(parts)
    assert [past for past, _ in ways] == [True, True, False, False]


def test_memory_that_a_disk_cannot_take_goes_through_the_cache(tmp_path, ways):
    """And all that follows, because the place in the file is then no longer a multiple either."""
    parts = [memory(ALIGNMENT, shift=8), memory(ALIGNMENT)]
    write_synced(tmp_path / "a", parts)
    assert (tmp_path / "a").read_bytes() == b"".join(parts)
    assert sum(count for past, count in ways if not past) == 2 * ALIGNMENT


def test_a_file_system_that_cannot_is_written_as_usual(tmp_path, ways, monkeypatch):
    """Some make the file before they say so."""
    make = os.open

    def refusing(path, flags, mode=0o777, **more):
        if flags & os.O_DIRECT:
            os.close(make(path, flags & ~os.O_DIRECT, mode, **more))
            raise OSError(errno.EINVAL, "no")
        return make(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", refusing)
    part = memory(ALIGNMENT)
    write_synced(tmp_path / "a", [part])
    assert (tmp_path / "a").read_bytes() == part
    assert ways == [(False, ALIGNMENT)]


def test_other_errors_are_the_callers(tmp_path, monkeypatch):
    """A full disk, a file that is there already."""
    write_synced(tmp_path / "a", [])
    with pytest.raises(FileExistsError):
        write_synced(tmp_path / "a", [])

    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_synced(tmp_path / "b", [memory(ALIGNMENT)])
    assert caught.value.errno == errno.ENOSPC


def test_the_staged_copy_can_go_past_the_cache(tmp_path, ways):
    """It begins on a page; what a shard's writer cuts from it does too."""
    staging = Staging(torch.device("cpu"))
    weights = torch.arange(3 * ALIGNMENT // 4, dtype=torch.float32)
    staging.copy([Piece("w", MASTER, 0, weights)])
    data = staging.data()
    write_synced(tmp_path / "a", [data[:ALIGNMENT], data[ALIGNMENT:]])
    assert (tmp_path / "a").read_bytes() == weights.numpy().tobytes()
    assert ways == [(True, ALIGNMENT), (True, 2 * ALIGNMENT)]
