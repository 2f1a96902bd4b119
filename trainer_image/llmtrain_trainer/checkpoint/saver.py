"""Writes checkpoints behind training's back: every rank its shard, rank 0 the manifest that commits them.

Training stands still while a rank's state is copied; claiming the storage, writing, agreeing and committing happen in
a thread. Guarantees: a checkpoint is committed only after every rank's shard is in storage, under the newest claim;
whatever fails, in storage or at a peer, ends up as an `Outcome` and never as an exception in training.
One save at a time: there is one copy of the state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.accord import Accord, Outcome
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.increments import Increments, Where
from llmtrain_trainer.checkpoint.layout import Segment
from llmtrain_trainer.checkpoint.manifest import Manifest, ShardEntry
from llmtrain_trainer.checkpoint.pieces import Piece
from llmtrain_trainer.checkpoint.staging import Staging
from llmtrain_trainer.checkpoint.storage import StorageError
from llmtrain_trainer.checkpoint.throttle import Throttle
from llmtrain_trainer.errors import TrainerError


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes: this rank of `world_size`, in round `round` of the job with this UID; `keep` checkpoints stay.

    `bandwidth`: most bytes per second that it writes, None: no limit.
    """

    rank: int
    world_size: int
    job_uid: str
    round: int
    keep: int
    bandwidth: int | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    n: int
    step: int
    segments: Sequence[Segment]
    data: Callable[[], memoryview]
    rng: dict[str, Any]
    state: dict[str, Any]
    began: float


class Saver:
    """One rank's saves of a round. `on_outcome` is called in the saver's thread with each save's end."""

    def __init__(
        self,
        catalog: Catalog,
        accord: Accord,
        writer: Writer,
        staging: Staging,
        on_outcome: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        self.staging = staging
        self._catalog, self._accord, self._writer, self._on_outcome = catalog, accord, writer, on_outcome
        self._increments = Increments(Throttle(writer.bandwidth))
        self._fence: int | None = None
        self._cleared = False
        self._count = 0
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None

    @property
    def busy(self) -> bool:
        """Whether the copy is still in use."""
        return self._thread is not None and self._thread.is_alive()

    def claim(self) -> None:
        """Rank 0: own the storage, once. A save does it if this failed. Raises `StorageError`, `Fenced`."""
        if self._fence is None:
            self._fence = self._catalog.claim(self._writer.job_uid, self._writer.round)

    def prepare(self, pieces: Sequence[Piece]) -> None:
        """Have the memory for the copy, in the background; the saver is busy meanwhile."""
        self._run(lambda: self.staging.reserve(pieces))

    def begin(self, step: int, pieces: Sequence[Piece], rng: dict[str, Any], state: dict[str, Any]) -> float:
        """Copy the pieces and start to write them; the seconds that took. The saver must not be busy.

        Every rank calls this for the same steps in the same order. `state` counts on rank 0, `rng` is each rank's own.
        """
        began = time.perf_counter()
        self._check_idle()
        segments = self.staging.copy(pieces)
        stall = time.perf_counter() - began
        self._start(step, segments, self.staging.data, rng, state, began)
        return stall

    def write(
        self, step: int, segments: Sequence[Segment], data: memoryview, rng: dict[str, Any], state: dict[str, Any]
    ) -> None:
        """As `begin`, of a copy that is there already and stays as it is for as long as the saver is busy."""
        self._check_idle()
        self._start(step, segments, lambda: data, rng, state, time.perf_counter())

    def _check_idle(self) -> None:
        if self.busy:
            raise AssertionError("the last copy is still being written")

    def _start(
        self,
        step: int,
        segments: Sequence[Segment],
        data: Callable[[], memoryview],
        rng: dict[str, Any],
        state: dict[str, Any],
        began: float,
    ) -> None:
        self._count += 1
        job = _Job(self._count, step, segments, data, rng, state, began)
        self._run(lambda: self._finish(job))

    def take(self) -> Outcome | None:
        """How the newest save ended; None if it is still going on, or was taken before."""
        if self.busy:
            return None
        outcome, self._outcome = self._outcome, None
        return outcome

    def wait(self) -> None:
        """Until the saver is not busy."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, work: Callable[[], None]) -> None:
        # A daemon: a worker that fails ends at once, even if its storage hangs.
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def _finish(self, job: _Job) -> None:
        try:
            self._outcome = self._lead(job) if self._writer.rank == 0 else self._follow(job)
        except TrainerError as error:
            self._outcome = _failed(job, error)
        except Exception as error:  # noqa: BLE001 - the thread's outermost edge; training need not know of our faults
            text = f"the checkpoint failed: {type(error).__name__}: {error}"
            self._outcome = self._give_up(job, StorageError(names.REASON_STORAGE_UNREACHABLE, text))
        self._increments.settle(self._outcome)
        self._on_outcome(self._outcome)

    def _give_up(self, job: _Job, error: StorageError) -> Outcome:
        """Tell the others, whatever they wait for now: they would wait for minutes."""
        outcome = _failed(job, error)
        with contextlib.suppress(StorageError):
            if self._writer.rank == 0:
                self._accord.say_no_fence(job.n, error)
                self._accord.say_outcome(job.n, outcome)
            else:
                self._accord.say_failure(job.n, error)
        return outcome

    def _lead(self, job: _Job) -> Outcome:
        """Rank 0's part."""
        self._open(job)
        try:
            seconds = self._write(job)
            manifest = self._manifest(job, self._accord.shards(job.n, seconds))
            self._catalog.commit(manifest)
        except TrainerError as error:
            self._tidy(error, job.step)
            outcome = _failed(job, error)
        else:
            seconds = time.perf_counter() - job.began
            outcome = self._prune(Outcome(job.step, committed=True, size=manifest.size, seconds=seconds))
        self._accord.say_outcome(job.n, outcome)
        if job.n > 1:
            self._accord.forget(job.n - 1)  # all ranks have begun this save, so they are done with the last
        return outcome

    def _follow(self, job: _Job) -> Outcome:
        """Any other rank's part."""
        self._fence = self._accord.fence(job.n)
        return self._accord.outcome(job.n, self._write(job))

    def _open(self, job: _Job) -> None:
        """Say under which fence this save is written, after a claim if there is none yet. The first one makes room."""
        try:
            self.claim()
            self._clear()
        except TrainerError as error:
            self._accord.say_no_fence(job.n, error)
            raise
        self._accord.say_fence(job.n, self.fence)

    @property
    def fence(self) -> int:
        """The number of the claim."""
        if self._fence is None:
            raise AssertionError("no claim yet")
        return self._fence

    def _write(self, job: _Job) -> float:
        """Write this rank's shard and say so, or why not; the seconds it took."""
        began = time.perf_counter()
        where = Where(job.step, self.fence, self._writer.rank)
        try:
            entry = self._increments.write(self._catalog.storage, where, job.segments, job.data(), {"rng": job.rng})
        except StorageError as error:
            self._accord.say_failure(job.n, error)
        else:
            self._accord.say_shard(job.n, entry)
        return time.perf_counter() - began

    def _manifest(self, job: _Job, shards: tuple[ShardEntry, ...]) -> Manifest:
        writer = self._writer
        return Manifest(
            step=job.step,
            fence=self.fence,
            job_uid=writer.job_uid,
            round=writer.round,
            world_size=writer.world_size,
            created=time.time(),
            shards=shards,
            state=job.state,
        )

    def _prune(self, outcome: Outcome) -> Outcome:
        """Remove what is no longer needed. If that fails the new checkpoint stands all the same."""
        try:
            self._catalog.prune(self._writer.keep, outcome.step)
        except TrainerError as error:
            text = f"the checkpoint is saved, but old ones could not be removed: {error}"
            return dataclasses.replace(outcome, reason=error.reason, message=text)
        return outcome

    def _clear(self) -> None:
        """Once, for all of the round. Raises `Fenced`; storage that lets nothing be deleted may still take a save."""
        if not self._cleared:
            with contextlib.suppress(StorageError):
                self._catalog.clear()
                self._cleared = True

    def _tidy(self, error: TrainerError, step: int) -> None:
        """Remove what a failed save left behind, unless the storage is no longer ours."""
        if error.reason != names.REASON_FENCED:
            with contextlib.suppress(TrainerError):  # it failed already, for a reason that is being told
                self._catalog.discard(step)


def _failed(job: _Job, error: TrainerError) -> Outcome:
    return Outcome(job.step, reason=error.reason, message=str(error))
