"""A directory as durable storage: whole objects or none, one creator, errors in words."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.storage import StorageError, open_storage
from llmtrain_trainer.errors import ConfigError

STEP = "step-000000000001"


@pytest.fixture
def storage(tmp_path):
    storage = open_storage(f"file://{tmp_path / 'here'}")
    storage.prepare()
    return storage


def put(storage, name, data=b"data") -> None:
    storage.write(name, [memoryview(data)], len(data))


def test_objects_come_back_are_listed_and_go(storage):
    """Also an empty one; a directory that becomes empty goes with its last object."""
    put(storage, f"{STEP}/a", b"one")
    storage.write(f"{STEP}/a", [memoryview(b"t"), memoryview(b"wo")], 3)
    put(storage, f"{STEP}/b", b"")
    put(storage, "top")
    assert storage.read(f"{STEP}/a") == b"two"
    assert [(file.name, file.size) for file in storage.list(STEP).files] == [(f"{STEP}/a", 3), (f"{STEP}/b", 0)]
    assert [file.name for file in storage.list().files] == ["top"]
    assert storage.list().directories == (STEP,)
    storage.delete([f"{STEP}/a", f"{STEP}/gone", "gone/too"])
    assert storage.list().directories == (STEP,)
    storage.delete([f"{STEP}/b"])
    assert storage.list().directories == ()
    assert storage.read("top") == b"data"


def test_what_is_not_there_is_told_from_what_is_empty(storage):
    """No error: the storage is well."""
    assert storage.read("gone") is None
    assert storage.read_into("gone", 0, memoryview(bytearray(4))) == 0
    assert storage.list("gone").files == ()


def test_ranges_are_read_into_the_callers_memory(storage):
    """As many bytes as there are."""
    put(storage, "a", b"0123456789")
    room = bytearray(b"....")
    assert storage.read_into("a", 3, memoryview(room)) == 4
    assert room == b"3456"
    assert storage.read_into("a", 8, memoryview(room)) == 2
    assert room == b"8956"
    assert storage.read_into("a", 10, memoryview(room)) == 0


def test_of_many_creators_one_wins_and_its_content_stays(storage):
    """The others learn it, and leave nothing behind."""
    contents = [bytes([number]) * 1000 for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda data: storage.create("fence", data), contents))
    assert won.count(True) == 1
    assert storage.read("fence") == contents[won.index(True)]
    assert [file.name for file in storage.list().files] == ["fence"]


def test_exclusive_creation_works_without_hard_links(storage, monkeypatch):
    """Such as on CIFS."""

    def refused(self, target):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    assert storage.create("fence", b"mine")
    assert not storage.create("fence", b"yours")
    assert storage.read("fence") == b"mine"


def test_a_write_that_fails_leaves_what_was_there(storage):
    """And no litter."""
    put(storage, "a", b"old")

    def parts():
        yield memoryview(b"new")
        raise KeyError("the caller's own mistake")

    with pytest.raises(KeyError):
        storage.write("a", parts(), 6)
    assert storage.read("a") == b"old"
    assert [file.name for file in storage.list().files] == ["a"]


def test_bytes_and_names_are_synced_before_a_write_returns(storage, monkeypatch):
    """Power loss must not take a committed checkpoint: first the bytes, then the name, then the directory."""
    happened = []
    sync, replace = os.fsync, Path.replace
    path = lambda file: str(Path(f"/proc/self/fd/{file}").readlink())  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda file: (happened.append(path(file)), sync(file)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (happened.append("rename"), replace(self, to)))
    put(storage, f"{STEP}/a")
    root = storage.uri.removeprefix("file://")
    assert [Path(path).suffix or path for path in happened] == [root, ".partial", "rename", f"{root}/{STEP}"]


def test_a_directory_is_made_but_not_the_one_that_should_be_a_volume(tmp_path):
    """A volume that is not mounted must not be mistaken for an empty one."""
    with pytest.raises(StorageError, match="only the last part is made") as caught:
        open_storage(f"file://{tmp_path}/no-volume/checkpoints").prepare()
    assert caught.value.reason == names.REASON_STORAGE_MISSING
    assert list(tmp_path.iterdir()) == []


def test_a_claim_is_a_directory_that_has_to_be_there(tmp_path):
    """Below it everything is made."""
    environ = {names.ENV_VOLUMES: str(tmp_path)}
    storage = open_storage("pvc://claim/a/b", environ)
    with pytest.raises(StorageError) as caught:
        storage.prepare()
    assert caught.value.reason == names.REASON_STORAGE_MISSING
    (tmp_path / "claim").mkdir()
    storage.prepare()
    put(storage, "x")
    assert (tmp_path / "claim" / "a" / "b" / "x").read_bytes() == b"data"
    top = open_storage("pvc://claim", environ)
    top.prepare()
    assert top.list().directories == ("a",)


def test_a_directory_that_vanished_is_an_error_until_it_is_back(storage, tmp_path):
    """Not an empty storage, and not made again by a write."""
    (tmp_path / "here").rename(tmp_path / "elsewhere")
    tries = (
        lambda: put(storage, f"{STEP}/a"),
        lambda: put(storage, "a"),
        lambda: storage.create("a", b""),
        lambda: storage.read("a"),
        lambda: storage.read_into("a", 0, memoryview(bytearray(1))),
        lambda: storage.list(),
        lambda: storage.list(STEP),
    )
    for attempt in tries:
        with pytest.raises(StorageError, match="No such file or directory") as caught:
            attempt()
        assert caught.value.reason == names.REASON_STORAGE_MISSING
        assert str(caught.value).startswith(storage.uri)
    (tmp_path / "elsewhere").rename(tmp_path / "here")
    put(storage, f"{STEP}/a")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, names.REASON_STORAGE_FULL),
        (errno.EDQUOT, names.REASON_STORAGE_FULL),
        (errno.EROFS, names.REASON_STORAGE_READ_ONLY),
        (errno.EACCES, names.REASON_STORAGE_DENIED),
        (errno.ESTALE, names.REASON_STORAGE_UNREACHABLE),
        (errno.EIO, names.REASON_STORAGE_UNREACHABLE),
    ],
)
def test_every_error_has_its_reason_and_names_place_and_remedy(storage, code, reason):
    """The kernel's word for it, in the job's words."""

    def parts():
        yield memoryview(b"some")
        raise OSError(code, "no matter")

    with pytest.raises(StorageError) as caught:
        storage.write("a", parts(), 4)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"{storage.uri}: cannot write a: {os.strerror(code)}; ")
    assert storage.list().files == ()


@pytest.mark.parametrize("uri", ["http://x/y", "file://host/x", "pvc:///x", "file:///a/../b"])
def test_other_uris_are_refused(uri):
    """With what is accepted."""
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        open_storage(uri)
