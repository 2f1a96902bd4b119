"""Durable checkpoints as the training loop sees them: what to begin with, each step boundary, the end.

Guarantee: storage that fails never ends training, and each thing that happens to a checkpoint is told. Without
`checkpoint.durable` what is left is the obedience to signals.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from llmtrain_operator.contract import names, wire
from llmtrain_trainer.checkpoint import exporting, likeness
from llmtrain_trainer.checkpoint.accord import join_accord
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
from llmtrain_trainer.errors import ConfigError, TrainerError
from llmtrain_trainer.flash.recall import Recalled
from llmtrain_trainer.flash.session import Session
from llmtrain_trainer.flash.sources import Backing
from llmtrain_trainer.progress import Reporter
from llmtrain_trainer.signals import Wishes


class Keeper:
    """One worker's checkpoints in one round.

    `choose`, then `restore`; at each boundary `votes`, whose sum over all workers goes to `settle`; at last `finish`.
    All but `votes` and `before_update` are collective.
    """

    def __init__(self, config: Config, worker: Worker, reporter: Reporter, wishes: Wishes) -> None:
        self._worker, self._reporter, self._wishes = worker, reporter, wishes
        self._teller = Teller(reporter, speaks=worker.is_first)
        self._opening = Opening(worker, self._teller)
        self._restore_from = config.checkpoint.restore_from
        self._durable = config.checkpoint.durable
        self._catalog = Catalog(open_storage(self._durable.storage)) if self._durable else None
        self._saver = self._make_saver(self._catalog, self._durable) if self._catalog and self._durable else None
        self._cadence = Cadence(self._durable.every, self._durable.every_steps) if self._durable else Cadence(0.0)
        self._history = History(0, False, time.monotonic())
        self._session = Session.open(config, worker, reporter)
        self._state: EngineState | None = None
        self._tokenizer, self._max_steps = config.data.tokenizer, config.training.max_steps
        self._model: dict[str, Any] = {}
        self._fenced = ""
        self._began = 0.0
        self._put_off = 0
        self._prepared = False

    # Before the first step

    def choose(self) -> Source | None:
        """What to begin with, None: fresh weights at step 0, or what is in memory. Waits for storage that cannot be
        read, unless what is in memory is as new."""
        if self._session is not None:
            self._reporter.update(phase="restoring")
            recall = self._session.recall
            recall.survey()
            if recall.best and recall.best.step >= recall.durable_step:
                return None
        return self._choose_stored()

    def _choose_stored(self) -> Source | None:
        if self._saver is None and self._restore_from is None:
            return None
        self._reporter.update(phase="restoring")
        return self._opening.choose(self._saver, self._catalog, self._restore_from)

    def load_weights(self, model: Any, source: Source) -> None:
        """The weights of a finished model, before there is an engine. Waits for storage that cannot be read."""
        self._opening.load_weights(model, source)

    def restore(self, engine: Any, source: Source | None) -> Standing | None:
        """Bring the engine to what is in memory, or to the source's checkpoint; where training stood then. None without
        either. The flash store is made ready."""
        self._make_state(engine, needed=self._saver is not None or source is not None)
        recalled = self._recall(source)
        standing, own = None, False
        if recalled is not None:
            standing = recalled[1]
        else:
            if source is None and self._session is not None:
                source = self._choose_after_all()
            if self._state is not None and source is not None and source.manifest is not None:
                standing, own = self._restore(self._state, source)
            elif source is not None:
                self._teller.tell(restored_step=0, restored_from=source.name)
                self._teller.say(f"beginning with the weights of {source.name}")
        self._history = History(standing.step if standing else 0, own, time.monotonic())
        if self._session is not None and self._state is not None:
            self._session.begin(self._state, self._model, recalled[0] if recalled else None)
        return standing

    def _make_state(self, engine: Any, *, needed: bool) -> None:
        """Where the engine's state lies. One that cannot be saved is an error only where it has to be."""
        if not needed and self._session is None:
            return
        try:
            self._state = EngineState(engine)
        except ConfigError as error:
            if needed:
                raise
            self._session = None
            self._reporter.update(flash=wire.Flash(trouble=str(error)))
            self._teller.say(f"no snapshots in memory: {error}")
            return
        self._model = exporting.describe(engine.module, self._tokenizer)

    def _recall(self, source: Source | None) -> tuple[Recalled, Standing] | None:
        """From memory, if that is as new as the source."""
        if self._session is None or self._state is None or self._session.recall.best is None:
            return None
        began, backing = time.perf_counter(), None
        if source and source.own and source.manifest and self._catalog:
            backing = Backing(self._catalog.storage, source.manifest)
        at_least = backing.manifest.step if backing else 0
        recalled = self._session.recall.load(self._state, at_least, backing)
        for skipped in self._session.recall.skipped:
            self._teller.say(f"passed over a damaged snapshot: {skipped}")
        if recalled is None:
            return None
        standing = Standing.from_json(recalled.state.get("training"))
        seconds = time.perf_counter() - began
        self._teller.tell(
            restored_step=standing.step,
            restored_from=recalled.source,
            restore_seconds=seconds,
            skipped=recalled.skipped,
        )
        self._teller.say(f"going on from {recalled.source}, restored in {seconds:.2f} s")
        return recalled, standing

    def _choose_after_all(self) -> Source | None:
        """Storage was not asked, because memory had what is needed, or nothing; if memory failed it is now."""
        recall = self._session.recall if self._session else None
        if recall is None or not recall.attempted:
            return None
        source = self._choose_stored()
        if source is None or source.is_model:
            raise TrainerError(
                names.REASON_PEER_LOST,
                f"the snapshots in memory could not be read ({'; '.join(recall.skipped)}), and there is no checkpoint "
                "in durable storage: training begins again",
            )
        return source

    def _restore(self, state: EngineState, source: Source) -> tuple[Standing, bool]:
        began = time.perf_counter()
        source, stored = self._opening.load(state, source)
        standing = Standing.from_json(stored.get("training"))
        if not source.own:
            standing.check_steps_left(self._max_steps)
        for difference in likeness.check(stored.get("model"), self._model):
            self._teller.say(f"the model is used otherwise than the checkpoint's: {difference}")
        seconds = time.perf_counter() - began
        self._teller.tell(
            step=standing.step if source.own else None,
            restored_step=standing.step,
            restored_from=source.name,
            restore_seconds=seconds,
            skipped=source.skipped,
        )
        for skipped in source.skipped:
            self._teller.say(f"passed over a damaged checkpoint: {skipped}")
        self._teller.say(f"going on from {source.name}, restored in {seconds:.1f} s")
        return standing, source.own

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
            has_snapshot = self._session.settle(votes, self._live_state(), stored, needed=action == "save")
            if action == "save" and not has_snapshot:
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
        if self._session is not None:
            self._session.snapshots.before_update()
        elif self._saver is not None:
            self._saver.staging.before_update()

    def finish(self, standing: Standing) -> None:
        """Have the last step's checkpoint in storage before the model is exported, if the storage can be had."""
        if self._saver is not None and not self._save_and_wait(standing):
            self._teller.say("the last step's checkpoint could not be saved; the model is exported all the same")

    def _save_and_wait(self, standing: Standing) -> bool:
        """Whether this step's checkpoint is in storage in the end."""
        if self._session is not None or self._saver is not None:
            self._reporter.update(phase="saving")
        if self._session is not None:
            self._session.take_and_wait(self._live_state(), standing.to_json())
        if self._saver is None:
            return False
        self._await_outcome(self._saver)
        if not self._history.has(standing.step):
            self._begin(self._saver, standing)
            self._await_outcome(self._saver)
        self._check_fence(bool(self._fenced))
        return self._history.has(standing.step)

    def _await_outcome(self, saver: Saver) -> None:
        """How the save ended that may be under way, by rank 0's account: another may have waited for it in vain."""
        saver.wait()
        self._note_outcome()
        self._history, self._fenced = self._worker.from_first((self._history, self._fenced))

    def _begin(self, saver: Saver, standing: Standing) -> None:
        state = self._live_state()
        self._prepared = True
        self._began = time.monotonic()
        stored = {"engine": state.scalars(), "training": standing.to_json(), "model": self._model}
        if self._session is not None and self._session.snapshots.newest == standing.step:
            segments, data = self._session.snapshots.read(standing.step)
            saver.write(standing.step, segments, data, state.rng(), stored)
        else:
            self._teller.tell(stall_seconds=saver.begin(standing.step, state.pieces(), state.rng(), stored))

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
        elif outcome.reason == names.REASON_FENCED:
            self._fenced = outcome.message
        else:
            self._history = self._history.failed(time.monotonic())

    def _check_fence(self, fenced: bool) -> None:
        if fenced:
            raise TrainerError(names.REASON_FENCED, self._fenced or "another worker of this round was fenced")

    def _live_state(self) -> EngineState:
        if self._state is None:
            raise AssertionError("restore() comes before the first step")
        return self._state

    def _make_saver(self, catalog: Catalog, durable: Durable) -> Saver:
        writer = Writer(
            rank=self._worker.rank,
            world_size=self._worker.world_size,
            job_uid=os.environ.get(names.ENV_JOB_UID, ""),
            round=self._reporter.progress.round,
            keep=durable.keep,
        )
        accord = join_accord(writer.rank, writer.world_size)
        return Saver(catalog, accord, writer, Staging(self._worker.device), self._teller.ended)
