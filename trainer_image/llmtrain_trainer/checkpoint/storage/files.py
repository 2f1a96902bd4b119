"""Durable storage in a directory: file:// and pvc://.

An object is written beside its place, synced, and renamed; then its directory is synced. Exclusive creation is a hard
link, which also NFS decides at one place; a file system without hard links falls back to O_EXCL, where a reader may for
a moment see an empty file.
Limits: a system call that hangs (an NFS server that is gone, mounted `hard`) hangs the caller, however long it takes.
NFS clients cache listings for seconds unless mounted with `noac`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.storage.direct import write_synced
from llmtrain_trainer.checkpoint.storage.protocol import Entry, Listing, StorageError

PARTIAL: Final = ".partial"
"""End of the name of a file that is being written, or was when its writer died."""

_CAUSES: Final = {
    errno.ENOSPC: names.REASON_STORAGE_FULL,
    errno.EDQUOT: names.REASON_STORAGE_FULL,
    errno.EFBIG: names.REASON_STORAGE_FULL,
    errno.EROFS: names.REASON_STORAGE_READ_ONLY,
    errno.EACCES: names.REASON_STORAGE_DENIED,
    errno.EPERM: names.REASON_STORAGE_DENIED,
    errno.ENOENT: names.REASON_STORAGE_MISSING,
    errno.ENOTDIR: names.REASON_STORAGE_MISSING,
}
_REMEDIES: Final = {
    names.REASON_STORAGE_FULL: "make room, grow the volume, or lower spec.checkpoint.durable.keep",
    names.REASON_STORAGE_READ_ONLY: "mount the volume for writing",
    names.REASON_STORAGE_DENIED: "let the pod's user write there (template: securityContext.fsGroup)",
    names.REASON_STORAGE_MISSING: "mount the volume or make the directory; of the path only the last part is made for "
    "you, so that a missing volume is noticed",
    names.REASON_STORAGE_UNREACHABLE: "look after the volume and its server",
}
_NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class FileStorage:
    """Objects as files below `root`. `anchor` has to be there already: `root` is made below it, it is not."""

    def __init__(self, uri: str, root: Path, anchor: Path) -> None:
        self._uri, self._root, self._anchor = uri, root, anchor

    @property
    def uri(self) -> str:
        """As the user wrote it."""
        return self._uri

    def prepare(self) -> None:
        """Make the directory, and those above it up to the anchor."""
        with self._explained("make", ""):
            missing = [path for path in (self._root, *self._root.parents) if path.is_relative_to(self._anchor)]
            self._anchor.stat()
            for path in reversed(missing):
                _make(path)

    def write(self, name: str, parts: Iterable[memoryview], size: int) -> None:  # noqa: ARG002 - S3 needs the size
        """See `Storage.write`."""
        with self._explained("write", name):
            with self._written_beside(name, parts) as beside:
                beside.replace(self._root / name)
            _sync(beside.parent)

    def create(self, name: str, data: bytes) -> bool:
        """See `Storage.create`."""
        with self._explained("create", name):
            try:
                with self._written_beside(name, [memoryview(data)]) as beside:
                    _link(beside, self._root / name, data)
            except FileExistsError:
                return False
            _sync(beside.parent)
            return True

    def read(self, name: str) -> bytes | None:
        """See `Storage.read`."""
        with self._explained("read", name):
            try:
                return (self._root / name).read_bytes()
            except FileNotFoundError:
                self._root.stat()
                return None

    def read_into(self, name: str, offset: int, into: memoryview) -> int:
        """See `Storage.read_into`."""
        with self._explained("read", name):
            try:
                file = os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._root.stat()
                return 0
            try:
                return _read_at(file, offset, into)
            finally:
                os.close(file)

    def list(self, directory: str = "") -> Listing:
        """See `Storage.list`."""
        with self._explained("list", directory):
            try:
                entries = list(os.scandir(self._root / directory))
            except FileNotFoundError:
                self._root.stat()
                return Listing((), ())
            prefix = f"{directory}/" if directory else ""
            files = [found for entry in entries if (found := _entry(prefix, entry)) is not None]
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            return Listing(tuple(sorted(files, key=lambda file: file.name)), tuple(sorted(folders)))

    def delete(self, names: Iterable[str]) -> None:
        """See `Storage.delete`."""
        directories: set[Path] = set()
        with self._explained("delete from", ""):
            for name in names:
                path = self._root / name
                path.unlink(missing_ok=True)
                directories.add(path.parent)
            for directory in directories - {self._root}:
                _remove_if_empty(directory)

    @contextlib.contextmanager
    def _written_beside(self, name: str, parts: Iterable[memoryview]) -> Iterator[Path]:
        """A synced file with `parts`, in the directory of `name`; gone afterwards, unless it was renamed."""
        target = self._root / name
        if target.parent != self._root:
            _make(target.parent)
        beside = target.with_name(f"{target.name}.{secrets.token_hex(4)}{PARTIAL}")
        try:
            write_synced(beside, parts)
            yield beside
        finally:
            beside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self, doing: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = _CAUSES.get(error.errno or 0, names.REASON_STORAGE_UNREACHABLE)
            what = f"{doing} {name}".strip()
            raise StorageError(
                reason, f"{self._uri}: cannot {what}: {os.strerror(error.errno or errno.EIO)}; {_REMEDIES[reason]}"
            ) from error


def _make(directory: Path) -> None:
    try:
        directory.mkdir()
    except FileExistsError:
        return
    _sync(directory.parent)


def _link(source: Path, target: Path, data: bytes) -> None:
    """Give `source` the name `target` too. Raises FileExistsError if there is one."""
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        write_synced(target, [memoryview(data)])


def _read_at(file: int, offset: int, into: memoryview) -> int:
    done = 0
    while done < len(into):
        count = os.preadv(file, [into[done:]], offset + done)
        if not count:
            break
        done += count
    return done


def _entry(prefix: str, entry: os.DirEntry[str]) -> Entry | None:
    """None for what is no file, or is gone since it was listed."""
    try:
        if not entry.is_file(follow_symlinks=False):
            return None
        facts = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return Entry(prefix + entry.name, facts.st_size, facts.st_mtime)


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        try:
            directory.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _sync(directory: Path) -> None:
    """Make names in a directory durable."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
