"""What durable storage can do, whatever it is, and the one way in which it fails.

Names are paths relative to the storage's URI, with "/" between directory and file; there is one level of directories.
Guarantee of every implementation: an object appears under its name whole or not at all, and stays once `write` or
`create` has returned, also if the machine loses power then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from llmtrain_trainer.errors import TrainerError


class StorageError(TrainerError):
    """The storage does not do what was asked. A save goes on without it, a restore cannot.

    `reason` is one of `names.REASON_STORAGE_*`; the message names the URI and the remedy, and never a credential.
    """


@dataclass(frozen=True, slots=True)
class Entry:
    """An object: its name in the storage, its size in bytes, when it was written in seconds since the epoch."""

    name: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class Listing:
    """What is directly in a directory. `directories` are names without a slash at the end."""

    files: tuple[Entry, ...]
    directories: tuple[str, ...]


class Storage(Protocol):
    """Objects by name. Every method raises `StorageError`; all may be called from several threads at once."""

    @property
    def uri(self) -> str:
        """As the user wrote it."""
        ...

    def prepare(self) -> None:
        """Make the place where there is none yet, if that can be done without hiding that a volume is missing."""
        ...

    def write(self, name: str, parts: Iterable[memoryview], size: int) -> None:
        """Write an object, replacing an earlier one of this name.

        `parts` are its bytes, one after the other; each is taken only when it is needed, and must not change before
        `write` returns. `size`: about how many bytes they are together.
        """
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one of this name: of several callers at once one gets True."""
        ...

    def read(self, name: str) -> bytes | None:
        """All of an object, None if there is none."""
        ...

    def read_into(self, name: str, offset: int, into: memoryview) -> int:
        """Fill `into` with the object's bytes from `offset` on; how many there were, 0 if there is no such object."""
        ...

    def list(self, directory: str = "") -> Listing:
        """What is directly in `directory`, the whole storage's top by default; nothing if there is no such directory.

        Objects that are still being written may be listed, under other names than their own.
        """
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects, and directories that become empty by it. What is not there does not matter."""
        ...
