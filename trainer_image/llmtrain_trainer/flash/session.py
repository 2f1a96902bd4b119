"""Snapshots in memory as the training loop sees them: what a round goes on from, each step boundary, the end.

Guarantee: what keeps snapshots from being taken (no room, a buddy that is slow) never ends training and never stalls
it; it is counted and told.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, cast

from llmtrain_operator.contract import names, wire
from llmtrain_operator.contract.cadence import Every, Measured, Pace, pace
from llmtrain_trainer.avoiding import avoid
from llmtrain_trainer.checkpoint.cadence import Votes
from llmtrain_trainer.config import Config, Flash
from llmtrain_trainer.distributed import Worker
from llmtrain_trainer.errors import ConfigError
from llmtrain_trainer.flash.notices import Notices
from llmtrain_trainer.flash.protocol import Pass
from llmtrain_trainer.flash.recall import Recall, Recalled
from llmtrain_trainer.flash.snapshots import SLOTS, Snapshots, Who
from llmtrain_trainer.flash.state import State
from llmtrain_trainer.flash.store import Store
from llmtrain_trainer.progress import Reporter

_REMEMBERED: Final = 32
_SETTLING: Final = 30.0
"""Seconds that workers which are to leave wait until their last snapshot is safe."""
_POLL: Final = 0.005
_NOMINATE: Final = 2
"""The vote for a snapshot that is to be copied; one that is not counts 1."""


class Session:
    """One worker's snapshots in one round. `recall` before the first step, then `begin`, then each boundary.

    `spare`: slots beside the usual ones, because snapshots are read for long (to persist them).

    `recall.survey`, `recall.load`, `begin`, `take_last` and `wait_until_safe` are collective; `settle` is done by all
    alike.
    """

    def __init__(self, flash: Flash, worker: Worker, reporter: Reporter, store: Store, spare: int = 0) -> None:
        self._flash, self._worker, self._reporter, self._store = flash, worker, reporter, store
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        number = reporter.progress.round
        who = Who(os.environ.get(names.ENV_JOB_UID, ""), number, worker.world_size, worker.rank, local_rank)
        self._who = who
        store.warm(local_rank)
        self._local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        notices = Notices(store, local_rank, number)
        self._slots, self._notices = SLOTS + spare, notices
        self.snapshots = Snapshots(store, who, worker.device, notices, self._slots)
        by = Pass(number, os.environ.get(names.ENV_FLASH_KEY, ""))
        self.recall = Recall(store, worker, worker.rank // self._local_world, by, avoid())
        self._stalls: deque[float] = deque(maxlen=_REMEMBERED)
        self._steps: deque[float] = deque(maxlen=_REMEMBERED)
        self._copies: deque[float] = deque(maxlen=_REMEMBERED)
        self._boundary = 0.0
        self._nominated: int | None = None
        self._nominated_at = 0.0
        self._settled = False
        self._pace = Pace(0, 0, "")
        self._told = wire.Flash()

    @classmethod
    def open(cls, config: Config, worker: Worker, reporter: Reporter) -> Session | None:
        """None where the job or the pod has no flash store."""
        wanted = config.checkpoint
        store = Store.of_this_pod() if wanted.flash.enabled else None
        return cls(wanted.flash, worker, reporter, store, 1 if wanted.durable else 0) if store else None

    def begin(self, state: State, model: dict[str, Any], recalled: Recalled | None) -> None:
        """The state is what training goes on with. Raises `ConfigError` on all workers if the store is too small.

        Only in the first round: later, when fewer members than were foreseen share a state, there are no snapshots.
        """
        self._store.cool()
        kept = recalled.edition if recalled else None
        self._store.withdraw_own(self._who.local_rank, kept)
        if self._who.local_rank == 0:
            self._store.drop_replicas(self._who.round, kept)
        sizes = self._worker.gather(self.snapshots.prepare(state, model, kept))
        lacking = self._lacking(sizes)
        if lacking is None:
            self.snapshots.reserve()
        elif self._who.round == 1:
            raise ConfigError(lacking)
        else:
            self.snapshots.give_up(lacking)
        self._tell(kept=kept.step if kept else None, size=sum(sizes))

    def votes(self, step: int) -> dict[str, float]:
        """This worker's part of `Votes` after `step`."""
        now = time.perf_counter()
        if self._boundary:
            self._steps.append(now - self._boundary)
        ready = self._is_ready()
        safe = self.snapshots.acknowledged
        if safe:
            self._copies.append(now - self._nominated_at)
        return {
            "unready": not ready,
            "troubled": not ready and self.snapshots.trouble is not None,
            "safe": safe,
            "lost": self.snapshots.lost,
            "snap": self._wish(step) if self._worker.is_first else 0,
        }

    def settle(self, votes: Votes, state: State, standing: dict[str, Any], *, needed: bool) -> bool:
        """Commit what is safe, take a snapshot if one is due; False if it had to be put off, which all do alike.

        `needed`: there has to be one of this step, to be saved.
        """
        if votes.safe >= self._worker.world_size:
            self._commit()
        elif votes.lost:
            self.snapshots.renounce()
        is_due = bool(votes.snap or needed) and self.snapshots.newest != int(standing["step"])
        if is_due and votes.unready:
            self._tell(put_off=self._told.put_off + 1)
        elif is_due:
            self._take(state, standing, nominate=votes.snap >= _NOMINATE)
        self._boundary = time.perf_counter()
        return not (is_due and votes.unready)

    def take_last(self, state: State, standing: dict[str, Any]) -> None:
        """Have this step's snapshot on all workers, or on none if there is no memory. For the end of a round."""
        step, end = int(standing["step"]), time.monotonic() + _SETTLING
        while self.snapshots.newest != step:
            ready = self._is_ready()
            is_hopeless = time.monotonic() > end or (not ready and self.snapshots.trouble is not None)
            unready, hopeless = self._worker.sums(not ready, is_hopeless)
            if not unready:
                self._take(state, standing, nominate=True)
            elif hopeless:
                return
            else:
                time.sleep(_POLL)

    def wait_until_safe(self, step: int) -> bool:
        """Whether the snapshot of `step`, the newest, is safe on all workers. For the end of a round."""
        end = time.monotonic() + _SETTLING
        while self.snapshots.newest == step != self.snapshots.pins.committed:
            safe, lost, late = self._worker.sums(
                self.snapshots.acknowledged, self.snapshots.lost, time.monotonic() > end
            )
            if safe >= self._worker.world_size:
                self._commit()
            elif lost or late:
                break
            elif self.snapshots.pins.candidate is None:
                self.snapshots.nominate()
            else:
                time.sleep(_POLL)
        return self.snapshots.pins.committed == step

    def _is_ready(self) -> bool:
        trouble = self.snapshots.trouble
        text = f"no memory for snapshots: {trouble}" if trouble is not None else ""
        if text != self._told.trouble:
            self._tell(trouble=text)
        return self.snapshots.ready

    def _take(self, state: State, standing: dict[str, Any], *, nominate: bool) -> None:
        before = self.snapshots.pins.candidate
        with self._reporter.spending.on("snapshots"):
            stall = self.snapshots.take(state, standing, nominate=nominate)
        self._stalls.append(stall)
        if self.snapshots.pins.candidate != before:
            self._nominated, self._nominated_at = self.snapshots.newest, time.perf_counter()
        self._tell(step=self.snapshots.newest, stall_seconds=stall)

    @property
    def stall(self) -> float:
        """Seconds that the newest snapshot took."""
        return self._stalls[-1] if self._stalls else 0.0

    def release(self, saved: int | None) -> None:
        """What was read from a slot is in durable storage, or (None) could not be brought there."""
        self.snapshots.release()
        if saved is not None:
            self.note_durable(saved)

    def note_durable(self, step: int) -> None:
        """This is the newest step in durable storage that may be gone on from."""
        if self._who.local_rank == 0:
            with contextlib.suppress(OSError):  # a full store: storage is asked then, which takes longer
                self._store.note_durable(step)

    def _commit(self) -> None:
        self.snapshots.commit()
        if self._who.local_rank == 0 and not self._settled:
            self._store.drop_replicas(self._who.round, None)
        self._settled = True
        kept_by = self._notices.ack.kept_by if self._notices.ack else ()
        self._tell(committed=self.snapshots.pins.committed, copies=len(kept_by), kept_by=kept_by)

    def _wish(self, step: int) -> int:
        """Rank 0's: whether a snapshot is due after `step`, and whether it is the turn of one to be copied."""
        measured = Measured(_median(self._steps), _median(self._stalls), _median(self._copies), mtbf())
        every = cast("Every", self._flash.every_steps)
        found = pace(every, self._flash.replicate_every, self._flash.max_overhead, measured)
        if (found.snapshot, found.copy) != (self._pace.snapshot, self._pace.copy):
            self._pace = found
            self._tell(every=found.snapshot, reason=found.reason)
        if step < (self.snapshots.newest or -found.snapshot) + found.snapshot:
            return 0
        is_turn = self._nominated is None or step >= self._nominated + found.copy
        return _NOMINATE if is_turn else 1

    def _lacking(self, sizes: Sequence[int]) -> str | None:
        """What to do about a store that is too small, which would kill a worker in the midst of training."""
        pods = [sum(sizes[at : at + self._local_world]) for at in range(0, len(sizes), self._local_world)]
        copies = min(self._flash.replicas, len(pods) - 1)
        needed = max(pods) * (self._slots + SLOTS * copies)
        found = min(self._worker.gather(self._store.capacity))
        if found >= needed:
            return None
        return (
            f"spec.checkpoint.flash: snapshots need {needed} bytes of memory in each pod and there are {found}; "
            f"set checkpoint.flash.memory to {needed} or more, lower checkpoint.flash.replicas, or spread the job "
            "over more nodes"
        )

    def _tell(self, **changes: Any) -> None:
        self._told = dataclasses.replace(self._told, **changes)
        self._reporter.update(flash=self._told)


def _median(values: deque[float]) -> float | None:
    return statistics.median(values) if values else None


def mtbf() -> float | None:
    """Mean seconds between failures of this job so far, None if it had none."""
    given = os.environ.get(names.ENV_MTBF)
    return float(given) if given else None
