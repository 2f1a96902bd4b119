"""Where training goes on, and how its state gets there.

Own storage first, then `restoreFrom`, then a fresh start; but storage that holds checkpoints of which none is valid is
an error, never a fresh start. Rank 0 chooses for all. Guarantee of `load`: on every rank the whole state comes from the
one checkpoint, each byte checked, or every rank raises the same error.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import NOTHING, Avoid
from llmtrain_trainer.checkpoint import pretrained
from llmtrain_trainer.checkpoint.catalog import Catalog, step_directory
from llmtrain_trainer.checkpoint.filling import fill as fill_from
from llmtrain_trainer.checkpoint.layout import LayoutError
from llmtrain_trainer.checkpoint.manifest import Damaged, Manifest
from llmtrain_trainer.checkpoint.pieces import Piece
from llmtrain_trainer.checkpoint.shardfile import ShardReader
from llmtrain_trainer.checkpoint.state import EngineState
from llmtrain_trainer.checkpoint.storage import Storage, StorageError, open_storage
from llmtrain_trainer.distributed import Worker
from llmtrain_trainer.errors import ConfigError, TrainerError


@dataclass(frozen=True, slots=True)
class Source:
    """What a round begins with: a checkpoint, or without `manifest` the weights of a Hugging Face model at `uri`.

    `own`: it lies in this job's own storage. `skipped`: newer checkpoints that are damaged, each as `NAME: why`.
    """

    uri: str
    own: bool
    manifest: Manifest | None
    skipped: tuple[str, ...] = ()

    @property
    def is_model(self) -> bool:
        """Whether it is weights only, for the model before there is an engine."""
        return self.manifest is None

    def load_weights(self, model: torch.nn.Module) -> None:
        """See `pretrained.load_weights`."""
        pretrained.load_weights(model, open_storage(self.uri))

    @property
    def name(self) -> str:
        """URI of the checkpoint or model."""
        return f"{self.uri.rstrip('/')}/{step_directory(self.manifest.step)}" if self.manifest else self.uri


def choose(own: Catalog | None, restore_from: str | None) -> Source | None:
    """What to begin with; None: fresh. Raises `StorageError` (ask again later), `CheckpointLost`, `ConfigError`."""
    if own is not None:
        source = _newest(own, own=True)
        if source is not None:
            return source
    if restore_from is None:
        return None
    storage = open_storage(restore_from)
    source = _newest(Catalog(storage), own=False)
    if source is not None:
        return source
    if pretrained.is_model(storage):
        return Source(restore_from, False, None)
    raise ConfigError(
        f"spec.checkpoint.restoreFrom: {restore_from} holds neither a checkpoint nor a Hugging Face model (config.json "
        "and *.safetensors); give the durable.storage of another job, or the directory of a model"
    )


def choose_older(source: Source, damage: Damaged, avoid: Avoid = NOTHING) -> Source:
    """What to take instead of a checkpoint that turned out damaged: the next older one beside it.

    One that is no longer there was no damaged one: the job that it belongs to trains, and has removed it for a newer
    one, which is taken then. `avoid`: what this job was rolled back from. Raises `StorageError`, `CheckpointLost`.
    """
    if source.manifest is None:
        raise AssertionError("a model has no older checkpoints")
    step, skipped = source.manifest.step, (*source.skipped, str(damage))
    catalog = Catalog(open_storage(source.uri), avoid if source.own else NOTHING)
    if catalog.checkpoint(step).manifest == source.manifest:
        other = _newest(catalog, own=source.own, below=step, skipped=skipped)
    else:
        other = _newest(catalog, own=source.own)
    if other is None:
        raise _lost(source.uri, skipped)
    return other


def load(state: EngineState, source: Source, worker: Worker) -> dict[str, Any]:
    """Bring the engine to the checkpoint; the manifest's state. Collective.

    Raises on all ranks alike: `Damaged` and `StorageError`, after which the engine has to be loaded again, and
    `CheckpointMismatch`.
    """
    manifest = source.manifest
    if manifest is None:
        raise AssertionError("a model is loaded before there is an engine")
    storage = open_storage(source.uri)
    generators: list[dict[str, Any]] = []

    def fill(pieces: list[Piece]) -> None:
        trouble = _attempt(storage, manifest, pieces, worker, generators)
        _raise_worst([each for each in worker.gather(trouble) if each is not None], source)

    state.load(manifest.state["engine"], fill)
    if generators:
        state.load_rng(generators[0])
    else:
        state.reseed(manifest.step)
    return manifest.state


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why a rank could not fill its state; as data, so that it can be told to the others."""

    kind: Literal["mismatch", "damaged", "storage"]
    name: str
    message: str


def _attempt(
    storage: Storage, manifest: Manifest, pieces: list[Piece], worker: Worker, generators: list[dict[str, Any]]
) -> _Trouble | None:
    try:
        if manifest.world_size == worker.world_size:
            generators.append(ShardReader(storage, manifest.shards[worker.rank]).extras["rng"])
        fill_from([functools.partial(ShardReader, storage, entry) for entry in manifest.parts], pieces)
    except Damaged as error:
        return _Trouble("damaged", error.name, error.why)
    except LayoutError as error:
        return _Trouble("mismatch", "", str(error))
    except StorageError as error:
        return _Trouble("storage", error.reason, str(error))
    return None


def _raise_worst(troubles: list[_Trouble], source: Source) -> None:
    for trouble in sorted(troubles, key=lambda each: ("mismatch", "damaged", "storage").index(each.kind)):
        if trouble.kind == "damaged":
            raise Damaged(trouble.name, trouble.message)
        if trouble.kind == "storage":
            raise StorageError(trouble.name, trouble.message)
        raise TrainerError(
            names.REASON_CHECKPOINT_MISMATCH,
            f"{source.name} does not hold what this job needs: {trouble.message}; give the job the model and the "
            "training.optimizer that the checkpoint was made with, or another storage",
        )


def _newest(catalog: Catalog, *, own: bool, below: int | None = None, skipped: tuple[str, ...] = ()) -> Source | None:
    manifest, passed_over = catalog.newest_valid(below)
    skipped += passed_over
    if manifest is not None:
        return Source(catalog.storage.uri, own, manifest, skipped)
    if passed_over:
        raise _lost(catalog.storage.uri, skipped)
    return None


def _lost(uri: str, skipped: tuple[str, ...]) -> TrainerError:
    return TrainerError(
        names.REASON_CHECKPOINT_LOST,
        f"{uri} holds checkpoints and none of them is valid: {'; '.join(skipped)}; bring back a copy of them, or give "
        "the job another storage to start anew",
    )
