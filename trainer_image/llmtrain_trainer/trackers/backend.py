"""What a tracker's process needs of a backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmtrain_trainer.trackers.points import Point


@dataclass(frozen=True, slots=True)
class Run:
    """The one run of a job in a tracker. `id`: the same in all rounds, from the job's UID; `config`: the job's spec."""

    id: str
    name: str
    round: int
    config: dict[str, Any]


class Backend(Protocol):
    """One backend in one round. Methods may raise whatever the library does, and take as long: see `process`."""

    def begin(self, run: Run) -> int:
        """Open the run, or go on with it: the newest step that its record has, 0 if there is none."""

    def log(self, points: Sequence[Point]) -> None:
        """Add points, steps ascending, all beyond what `begin` returned."""

    def kept(self) -> int:
        """The newest step that would stay in the record if this process and its pod ended now."""

    def finish(self) -> None:
        """The job is complete: close the run, with everything in the record."""


class Fenced(Exception):  # noqa: N818 - says what happened
    """A newer round writes to this record: end."""


class Fence:
    """A file beside a record that names the newest round that writes there. A leftover of an older one must not.

    Limit: a leftover that is between its look and its write when the newer round begins may still do that one write.
    """

    def __init__(self, folder: Path, run: Run) -> None:
        self._file, self._round = folder / f".llmtrain-{run.id}.round", run.round

    def raise_to_this_round(self) -> None:
        """Raises `Fenced` if a newer round was here first."""
        self.check()
        new = self._file.with_name(f"{self._file.name}.{self._round}")
        new.write_text(str(self._round))
        new.replace(self._file)

    def check(self) -> None:
        """Raises `Fenced` if a newer round is here."""
        found = self._file.read_text() if self._file.exists() else ""
        if found.isdigit() and int(found) > self._round:
            raise Fenced(f"round {found} writes to {self._file.parent}, this is a leftover of round {self._round}")
