"""What a round begins with: the members' memory, else durable storage, else another job or model, else fresh weights.

Memory is asked first, and storage only if it may have something newer: a recovery that needs no storage does not wait
for it. Guarantee: all workers begin at the same step, with the whole state of one source, or all raise the same error.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from llmtrain_operator.contract import names, wire
from llmtrain_trainer.checkpoint import exporting, likeness
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.opening import Opening
from llmtrain_trainer.checkpoint.restore import Source
from llmtrain_trainer.checkpoint.saver import Saver
from llmtrain_trainer.checkpoint.standing import Standing
from llmtrain_trainer.checkpoint.state import EngineState
from llmtrain_trainer.checkpoint.teller import Teller
from llmtrain_trainer.config import Config
from llmtrain_trainer.errors import ConfigError, TrainerError
from llmtrain_trainer.flash.recall import Recalled
from llmtrain_trainer.flash.session import Session
from llmtrain_trainer.flash.sources import Backing
from llmtrain_trainer.progress import Reporter


@dataclass(frozen=True, slots=True)
class Begun:
    """Where training goes on (`standing`, None: at the beginning), and with what.

    `state` is None where nothing is saved, `session` where no snapshots are taken. `durable_step`: the newest step that
    this job's own storage is known to have.
    """

    standing: Standing | None
    state: EngineState | None
    model: dict[str, Any]
    session: Session | None
    durable_step: int | None


class Beginning:
    """One worker's part. All methods but `load_weights` are collective."""

    def __init__(
        self,
        config: Config,
        opening: Opening,
        reporter: Reporter,
        teller: Teller,
        session: Session | None,
        own: tuple[Saver, Catalog] | None,
    ) -> None:
        """`own`: the job's own storage, if it has one."""
        self._opening, self._reporter, self._teller, self._session = opening, reporter, teller, session
        self._saver = own[0] if own else None
        self._catalog = own[1] if own else None
        self._restore_from = config.checkpoint.restore_from
        self._tokenizer, self._max_steps = config.data.tokenizer, config.training.max_steps
        self._state: EngineState | None = None
        self._model: dict[str, Any] = {}

    def choose(self) -> Source | None:
        """What to begin with; None: fresh weights at step 0, or what is in memory, which is as new as storage."""
        if self._session is not None:
            self._reporter.update(phase="restoring")
            recall = self._session.recall
            recall.survey()
            if recall.best and recall.best.step >= recall.durable_step:
                return None
        return self._choose_stored()

    def load_weights(self, model: Any, source: Source) -> None:
        """The weights of a finished model, before there is an engine. Waits for storage that cannot be read."""
        self._opening.load_weights(model, source)

    def restore(self, engine: Any, source: Source | None) -> Begun:
        """Bring the engine to what was chosen, and make the flash store ready."""
        self._make_state(engine, needed=self._saver is not None or source is not None)
        recalled = self._recall(source)
        if recalled is not None:
            standing: Standing | None = recalled[1]
            durable = self._known_durable
        else:
            standing, durable = self._load(source or self._choose_after_all())
            if self._session is not None and durable is not None:
                self._session.note_durable(durable)
        if self._session is not None and self._state is not None:
            self._session.begin(self._state, self._model, recalled[0] if recalled else None)
        return Begun(standing, self._state, self._model, self._session, durable)

    @property
    def _known_durable(self) -> int | None:
        step = self._session.recall.durable_step if self._session and self._saver else -1
        return step if step >= 0 else None

    def _choose_stored(self) -> Source | None:
        """Waits for storage that cannot be read."""
        if self._saver is None and self._restore_from is None:
            return None
        self._reporter.update(phase="restoring")
        return self._opening.choose(self._saver, self._catalog, self._restore_from)

    def _choose_after_all(self) -> Source | None:
        """Storage was not asked, because memory had what is needed, or it has nothing; if memory failed it is now."""
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
        if self._session is None or self._state is None:
            return None
        began, backing = time.perf_counter(), None
        if source and source.own and source.manifest and self._catalog:
            backing = Backing(self._catalog.storage, source.manifest)
        recalled = self._session.recall.load(self._state, backing.manifest.step if backing else 0, backing)
        for skipped in self._session.recall.skipped:
            self._teller.say(f"passed over a damaged snapshot: {skipped}")
        if recalled is None:
            return None
        standing = self._standing(recalled.state, own=True)
        durable = backing.manifest.step if backing else self._known_durable
        self._tell(standing, durable, recalled.source, recalled.tier, began, recalled.skipped)
        return recalled, standing

    def _load(self, source: Source | None) -> tuple[Standing | None, int | None]:
        """From storage; where training stood then, and whether the job's own storage has that step."""
        if source is None:
            return None, None
        if source.manifest is None or self._state is None:
            self._teller.tell(restored_step=0, restored_from=source.name)
            self._teller.say(f"beginning with the weights of {source.name}")
            return None, None
        began = time.perf_counter()
        source, stored = self._opening.load(self._state, source)
        standing = self._standing(stored, own=source.own)
        durable = standing.step if source.own else None
        for skipped in source.skipped:
            self._teller.say(f"passed over a damaged checkpoint: {skipped}")
        self._tell(standing, durable, source.name, "durable", began, source.skipped)
        return standing, durable

    def _standing(self, stored: dict[str, Any], *, own: bool) -> Standing:
        standing = Standing.from_json(stored.get("training"))
        if not own:
            standing.check_steps_left(self._max_steps)
        for difference in likeness.check(stored.get("model"), self._model):
            self._teller.say(f"the model is used otherwise than the checkpoint's: {difference}")
        return standing

    def _tell(
        self, standing: Standing, durable: int | None, name: str, tier: str, began: float, skipped: tuple[str, ...]
    ) -> None:
        seconds = time.perf_counter() - began
        self._teller.tell(
            step=durable,
            restored_step=standing.step,
            restored_from=name,
            restored_tier=tier,
            restore_seconds=seconds,
            skipped=skipped,
        )
        self._teller.say(f"going on from {name}, restored in {seconds:.1f} s")
