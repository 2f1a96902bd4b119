"""Checkpoints as the training loop sees them: what to begin with, each step boundary, the end.

Snapshots in memory (`flash`) and durable ones, which are written from them. Guarantee: neither storage nor memory that
fails ever ends training, and each thing that happens to a checkpoint is told. Without either what is left is the
obedience to signals.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_operator.contract.cadence import persist_interval
from llmtrain_trainer.avoiding import avoid
from llmtrain_trainer.checkpoint.accord import Outcome, join_accord
from llmtrain_trainer.checkpoint.beginning import Beginning
from llmtrain_trainer.checkpoint.cadence import Cadence, History, Votes, decide, due
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.opening import Opening
from llmtrain_trainer.checkpoint.restore import Source
from llmtrain_trainer.checkpoint.saver import Saver, Writer
from llmtrain_trainer.checkpoint.staging import Staging
from llmtrain_trainer.checkpoint.standing import Standing
from llmtrain_trainer.checkpoint.state import EngineState
from llmtrain_trainer.checkpoint.storage import open_storage
from llmtrain_trainer.checkpoint.teller import Teller
from llmtrain_trainer.config import Config, Durable
from llmtrain_trainer.distributed import Worker
from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.flash.session import Session, mtbf
from llmtrain_trainer.progress import Reporter
from llmtrain_trainer.signals import Wishes

_FIRST_INTERVAL: Final = 600.0
"""Seconds between checkpoints until it is known what one costs, where they are to be chosen."""
_SHARE: Final = 0.03
"""What a save in the background counts: that part of its time, for the cycles and the network that it takes."""


class Keeper:
    """One worker's checkpoints in one round.

    `choose`, then `restore`; at each boundary `votes`, whose sum over all workers goes to `settle`; at last `finish`.
    All but `votes` and `before_update` are collective.
    """

    def __init__(self, config: Config, worker: Worker, reporter: Reporter, wishes: Wishes) -> None:
        self._worker, self._reporter, self._wishes = worker, reporter, wishes
        self._teller = Teller(reporter, speaks=worker.is_first)
        durable = config.checkpoint.durable
        own = self._make_saver(durable) if durable else None
        self._saver = own[0] if own else None
        self._durable = durable
        self._cadence = _first_cadence(durable) if durable else Cadence(0.0)
        self._history = History(0, False, time.monotonic())
        self._session = Session.open(config, worker, reporter)
        opening = Opening(worker, self._teller)
        self._beginning = Beginning(config, opening, reporter, self._teller, self._session, own)
        self._state: EngineState | None = None
        self._model: dict[str, Any] = {}
        self._fenced = ""
        self._began = 0.0
        self._stall = 0.0
        self._put_off = 0
        self._prepared = False

    # Before the first step

    def choose(self) -> Source | None:
        """What to begin with; see `Beginning.choose`."""
        return self._beginning.choose()

    def load_weights(self, model: Any, source: Source) -> None:
        """See `Beginning.load_weights`."""
        self._beginning.load_weights(model, source)

    def restore(self, engine: Any, source: Source | None) -> Standing | None:
        """Bring the engine to what was chosen; where training stood then, None: it begins at step 0."""
        begun = self._beginning.restore(engine, source)
        self._state, self._model, self._session = begun.state, begun.model, begun.session
        at = begun.standing.step if begun.standing else 0
        known = begun.durable_step
        self._history = History(at if known is None else known, known is not None, time.monotonic())
        return begun.standing

    # At a step boundary

    def votes(self, step: int) -> Votes:
        """This worker's votes on what to do after `step`."""
        writing = self._saver is not None and self._saver.busy  # first: a save that ends after this is noted next time
        self._note_outcome()
        is_due, failing = False, False
        if self._saver is not None and self._worker.is_first:
            is_due, _ = due(self._cadence, self._history, step, time.monotonic(), hurry=self._wishes.leave)
            failing = self._history.failures > 0
        return Votes(
            stop=self._wishes.stop,
            leave=self._wishes.leave,
            writing=writing,
            fenced=bool(self._fenced),
            due=is_due,
            failing=failing,
            **(self._session.votes(step) if self._session else {}),
        )

    def settle(self, votes: Votes, standing: Callable[[], Standing]) -> bool:
        """Do what the summed votes say; whether the worker is to end now. Raises `Fenced`."""
        self._check_fence(votes.fenced > 0)
        action, why = decide(votes)
        if action in ("stop", "leave"):
            self._teller.say(f"{why}: this is step {standing().step}")
            return self._save_and_wait(standing()) or action == "stop" or self._saver is None
        if self._session is not None:
            stored = standing().to_json()
            settled = self._session.settle(votes, self._live_state(), stored, needed=action == "save")
            if action == "save" and not settled and not votes.troubled:
                action, why = "put off", "there is no room in memory for its snapshot yet"
        if self._saver is None:
            return False
        if action == "save":
            self._begin(self._saver, standing())
        elif action == "put off":
            self._put_off += 1
            if self._put_off == 1:
                self._teller.say(f"checkpoint of step {standing().step} put off: {why}")
        elif not self._prepared and self._session is None:
            self._prepared = True
            self._saver.prepare(self._live_state().pieces())
        return False

    def before_update(self) -> None:
        """The optimizer is about to change the state: the copy of it has to be over."""
        with self._reporter.spending.on("snapshots"):
            if self._session is not None:
                self._session.snapshots.before_update()
            if self._saver is not None:
                self._saver.staging.before_update()

    def finish(self, standing: Standing) -> None:
        """Have the last step's checkpoint in storage before the model is exported, if the storage can be had."""
        if self._saver is not None and not self._save_and_wait(standing):
            self._teller.say("the last step's checkpoint could not be saved; the model is exported all the same")

    def _save_and_wait(self, standing: Standing) -> bool:
        """Whether this step's checkpoint is in storage in the end."""
        with self._reporter.spending.on("saving"):
            return self._saved(standing)

    def _saved(self, standing: Standing) -> bool:
        """What is left of the grace period goes to storage first: copies to other members are made meanwhile."""
        session, saver = self._session, self._saver
        if session is not None or saver is not None:
            self._reporter.update(phase="saving")
        if session is not None:
            session.take_last(self._live_state(), standing.to_json())
        if saver is not None:
            self._await_outcome(saver)
            if not self._history.has(standing.step):
                self._begin(saver, standing)
        if session is not None:
            session.wait_until_safe(standing.step)
        if saver is None:
            return False
        self._await_outcome(saver)
        self._check_fence(bool(self._fenced))
        return self._history.has(standing.step)

    def _await_outcome(self, saver: Saver) -> None:
        """How the save ended that may be under way, by rank 0's account: another may have waited for it in vain."""
        saver.wait()
        self._note_outcome()
        self._history, self._fenced = self._worker.from_first((self._history, self._fenced))

    def _begin(self, saver: Saver, standing: Standing) -> None:
        with self._reporter.spending.on("durable"):
            self._copy(saver, standing)
        self._teller.tell(stall_seconds=self._stall)

    def _copy(self, saver: Saver, standing: Standing) -> None:
        state = self._live_state()
        self._prepared = True
        self._began = time.monotonic()
        stored = {"engine": state.scalars(), "training": standing.to_json(), "model": self._model}
        self._stall = self._session.stall if self._session is not None else 0.0
        taken = self._session.snapshots.read(standing.step) if self._session is not None else None
        if taken is not None:
            saver.write(standing.step, *taken, state.rng(), stored)
        else:
            self._stall = saver.begin(standing.step, state.pieces(), state.rng(), stored)

    def _note_outcome(self) -> None:
        outcome = self._saver.take() if self._saver else None
        if outcome is None:
            return
        if self._session is not None:
            self._session.release(outcome.step if outcome.committed else None)
        if self._put_off:
            self._teller.say(f"the checkpoint of step {outcome.step} put off the next by {self._put_off} steps")
            self._put_off = 0
        if outcome.committed:
            self._history = self._history.saved(outcome.step, self._began)
            self._choose_interval(outcome)
        elif outcome.reason == names.REASON_FENCED:
            self._fenced = outcome.message
        else:
            self._history = self._history.failed(time.monotonic())

    def _choose_interval(self, outcome: Outcome) -> None:
        if self._durable is None or self._durable.interval is not None:
            return
        every, reason = persist_interval(self._stall, outcome.seconds, _SHARE, mtbf())
        self._cadence = Cadence(every, self._durable.every_steps)
        self._teller.tell(every=every, reason=reason)

    def _check_fence(self, fenced: bool) -> None:
        if fenced:
            raise TrainerError(names.REASON_FENCED, self._fenced or "another worker of this round was fenced")

    def _live_state(self) -> EngineState:
        if self._state is None:
            raise AssertionError("restore() comes before the first step")
        return self._state

    def _make_saver(self, durable: Durable) -> tuple[Saver, Catalog]:
        writer = Writer(
            rank=self._worker.rank,
            world_size=self._worker.world_size,
            job_uid=os.environ.get(names.ENV_JOB_UID, ""),
            round=self._reporter.progress.round,
            keep=durable.keep,
            bandwidth=durable.bandwidth,
        )
        # A plain torchrun has no rounds, may keep one store for all its restarts, and counts fewer of them in an agent
        # that came later.
        attempt = f"round-{writer.round}" if writer.round else self._worker.from_first(uuid.uuid4().hex)
        accord = join_accord(writer.rank, writer.world_size, attempt)
        catalog = Catalog(open_storage(durable.storage), avoid())
        return Saver(catalog, accord, writer, Staging(self._worker.device), self._teller.ended), catalog


def _first_cadence(durable: Durable) -> Cadence:
    return Cadence(_FIRST_INTERVAL if durable.interval is None else durable.interval, durable.every_steps)
