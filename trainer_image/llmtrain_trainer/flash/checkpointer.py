"""Snapshots for a user's own training loop: where it goes on, each step boundary, and what its agent is told.

    checkpointer = Checkpointer(model, optimizer, scheduler=scheduler)
    for step in range(checkpointer.restore() + 1, steps + 1):
        ...
        checkpointer.step(step, loss)
    checkpointer.close()

Guarantee: a worker that dies costs the steps since the last snapshot; what keeps snapshots from being taken never ends
training. Without a flash store (outside of a job of ours, say) the same script just trains.
Limits: snapshots are in memory: they go with the pods. The data's position is the script's business; it is a function
of the step, or travels as `position`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.distributed

from llmtrain_operator.contract import names
from llmtrain_operator.contract.cadence import Every
from llmtrain_trainer.checkpoint.cadence import Votes
from llmtrain_trainer.checkpoint.teller import Teller
from llmtrain_trainer.config import Flash, from_dict
from llmtrain_trainer.distributed import Worker
from llmtrain_trainer.errors import ConfigError, TrainerError
from llmtrain_trainer.flash import plain, spread
from llmtrain_trainer.flash.session import Session
from llmtrain_trainer.flash.store import Store
from llmtrain_trainer.flash.torch_state import Stateful, TorchState
from llmtrain_trainer.progress import Reporter

T = TypeVar("T")


class Checkpointer:
    """For a model that all workers train alike: one process, DDP, or FSDP2 (`fully_shard`), already wrapped.

    `extra`: objects whose `state_dict()` is plain (numbers, text, lists, dictionaries) and the same on all workers.
    `every`: steps between snapshots or "auto", which spaces them so that they take at most `max_overhead` of the time;
    what is not given is as in the job's spec (`checkpoint.flash`). `max_steps` is only reported. Collective over the
    default process group, as are `restore` and `step`. Raises `ConfigError` for what cannot be saved.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        scheduler: Stateful | None = None,
        extra: Mapping[str, Stateful] | None = None,
        every: Every | None = None,
        replicate_every: int | None = None,
        max_overhead: float | None = None,
        max_steps: int = 0,
    ) -> None:
        settings = _settings({"everySteps": every, "replicateEvery": replicate_every, "maxOverhead": max_overhead})
        objects = dict(extra or {}) | ({"scheduler": scheduler} if scheduler is not None else {})
        self._worker = _this_worker(next(model.parameters()).device)
        self._reporter = Reporter(self._worker.rank, max_steps)
        self._teller = Teller(self._reporter, self._worker.is_first)
        self._state = TorchState(model, optimizer, objects, self._worker.rank, self._worker.world_size)
        self._session = self._open(settings)
        inner = spread.unwrapped_optimizer(optimizer)
        self._hook = inner.register_step_pre_hook(self._before_update) if self._session else None
        self._boundary: float | None = None
        self._generators: dict[str, Any] | None = None
        self.position: dict[str, Any] = {}

    @property
    def newest(self) -> int | None:
        """The step of the newest snapshot of this worker, None if this process has taken none."""
        return self._session.snapshots.newest if self._session else None

    def restore(self) -> int:
        """Bring everything to the newest snapshot that all workers have; its step, 0 if there is none. Collective.

        `position` is then what `step` was given. To be called once, before the first step.
        """
        step = 0
        if self._session is not None:
            with self._reporter.spending.on("restoring"):
                self._reporter.update(phase="restoring")
                step = self._restore(self._session)
        self._reporter.spending.turn("stepping")
        self._reporter.update(phase="training", step=step)
        return step

    def step(
        self,
        step: int,
        loss: float | torch.Tensor | None = None,
        *,
        position: Mapping[str, Any] | None = None,
        **progress: Any,
    ) -> None:
        """The optimizer and the scheduler have made step number `step`, counted from 1. Collective.

        `position`: what `restore` is to give back, plain and the same on all workers. `loss`, the mean over the global
        batch, and `progress`, fields of `wire.Progress` such as `epoch` and `tokens_per_second`, are reported. A loss
        on an accelerator is waited for.
        """
        if self._session is not None:
            votes = Votes(**self._session.votes(step))
            sums = self._worker.sums(*votes.values())
            stored = plain.to_json(dict(position or {}), "llmtrain_trainer.flash: position")
            self._session.settle(Votes.of(sums), self._state, {"step": step, "position": stored}, needed=False)
        now = time.perf_counter()
        if self._boundary is not None:
            progress.setdefault("step_seconds", now - self._boundary)
        self._boundary = now
        if loss is not None:
            progress["loss"] = float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
        self._reporter.spending.stepped()
        self._reporter.update(phase="training", step=step, **progress)

    def rewind_generators(self) -> None:
        """The random generators again as `restore` left them, for a loop that has drawn from them since; only once.

        Such as a data loader, which draws a seed at each epoch's begin: in an epoch that goes on, that is one too many.
        """
        if self._generators is not None:
            self._state.load_rng(self._generators)
            self._generators = None

    def close(self) -> None:
        """Training is over; the agent hears the last word."""
        if self._hook is not None:
            self._hook.remove()
        self._reporter.update(phase="done")
        self._reporter.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._reporter.close()

    def _open(self, settings: Flash) -> Session | None:
        store = Store.of_this_pod() if settings.enabled else None
        if store is None:
            return None
        if self._worker.world_size > 1 and "LOCAL_RANK" not in os.environ:
            raise ConfigError(
                "llmtrain_trainer.flash: LOCAL_RANK is not set, and workers of one pod need places of their own for "
                "snapshots; start the script with torchrun or as a job"
            )
        return Session(settings, self._worker, self._reporter, store)

    def _restore(self, session: Session) -> int:
        began = time.perf_counter()
        session.recall.survey()
        recalled = session.recall.load(self._state, 0)
        for skipped in session.recall.skipped:
            self._teller.say(f"passed over a damaged snapshot: {skipped}")
        if recalled is None and session.recall.attempted:
            # What was damaged is withdrawn: the next attempt begins with what is left, or anew.
            raise TrainerError(
                names.REASON_USER_ERROR,
                "none of the snapshots in memory could be read whole, and the model is half filled: start again",
            )
        session.begin(self._state, {}, recalled)
        if recalled is None:
            return 0
        self._generators = self._state.rng()
        self.position = plain.from_json(recalled.state["training"]["position"])
        step, seconds = recalled.edition.step, time.perf_counter() - began
        told = {"restored_step": step, "restored_from": recalled.source, "restore_seconds": seconds}
        self._teller.tell(**told, restored_tier=recalled.tier, skipped=recalled.skipped)
        self._teller.say(f"going on from {recalled.source}, restored in {seconds:.1f} s")
        return step

    def _before_update(self, *_: object) -> None:
        if self._session is not None:
            self._session.snapshots.before_update()


class Alone(Worker):
    """The only worker, where there is no process group."""

    def sums(self, *values: float | torch.Tensor) -> list[float]:
        """Each value."""
        return [float(value) for value in values]

    def from_first(self, value: T) -> T:
        """The value."""
        return value

    def gather(self, value: T) -> list[T]:
        """The value alone."""
        return [value]


def _this_worker(device: torch.device) -> Worker:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Worker(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        raise ConfigError(
            f"llmtrain_trainer.flash: there are {size} workers and no process group; call "
            "torch.distributed.init_process_group() before the Checkpointer is made"
        )
    return Alone(0, 1, device)


def _settings(given: Mapping[str, Any]) -> Flash:
    """The job's `checkpoint.flash` (the defaults outside of a job) but for what is given. Raises `ConfigError`."""
    spec = json.loads(os.environ.get(names.ENV_SPEC) or "{}")
    stored = (spec.get("checkpoint") or {}).get("flash") or {}
    chosen = {key: value for key, value in given.items() if value is not None}
    return from_dict(Flash, stored | chosen, "spec.checkpoint.flash")
