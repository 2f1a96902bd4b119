"""DLRover's flash checkpoint as an engine: `Plain` for any training state, `DeepSpeed` as DLRover itself does it.

Memory saves go through DLRover's public checkpointers. Guarantee: what DLRover does silently is told: a skipped save is
put off, a lost snapshot and a dead saver are errors, and what is restored is a copy.
Limits, all DLRover's: one buffer, so that a worker killed while it saves leaves no snapshot; the world size and the
ZeRO stage that saved; the tensors of the first save, for good; a node's snapshots die with it (no copy elsewhere);
`DeepSpeed` restores from memory only once a step was persisted, and replaces torch.save in the whole process meanwhile.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.pieces import Piece
from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.flash.engines import Restored, Saved, dlrover_shims
from llmtrain_trainer.flash.engines.dlrover_shims import surfaced
from llmtrain_trainer.flash.state import State

_POLL: Final = 0.05
_TRACKER: Final = "dlrover_latest.txt"
_PUT_OFF: Final = "put off: DLRover has one buffer, and it is being persisted"
_LOST: Final = (
    "flash engine dlrover: the snapshot in memory is not whole on all workers. DLRover has one buffer: a worker that "
    "is killed while it saves leaves none. Go on from durable storage"
)


class _Base:
    """What both engines share. `_engine` is DLRover's, one level below its checkpointer."""

    def __init__(self, folder: Path) -> None:
        dlrover_shims.run_id()
        self._folder = folder
        self._persisting = 0
        self._engine: Any = None
        folder.mkdir(parents=True, exist_ok=True)

    def wait(self, timeout: float) -> None:
        """Until the step that was persisted last is on disk; memory saves are complete when they return."""
        end = time.monotonic() + timeout
        while self._persisting and _persisted(self._folder) != self._persisting:
            if time.monotonic() > end:
                raise TrainerError(
                    names.REASON_USER_ERROR,
                    f"flash engine dlrover: step {self._persisting} is not on disk after {timeout:.0f} s; DLRover "
                    "tells why in its saver's log only",
                )
            time.sleep(_POLL)

    def close(self) -> None:
        """Let go of the memory, and of the saver if it is this worker's child: when all workers are done."""
        child = self._engine.saver_proc
        with surfaced("closing"):
            self._engine.close()
        if child is not None and child.is_alive():
            child.terminate()
            child.join(10)
            dlrover_shims.remove_leftovers(dlrover_shims.run_id())

    def _outcome(self, began: float, step: int, *, persist: bool) -> Saved:
        """DLRover's checkpointers do not say whether they saved."""
        stall = time.perf_counter() - began
        if self._engine._cached_step != step:
            dlrover_shims.check_saver(self._engine)
            return Saved(stall, _PUT_OFF)
        if persist:
            self._persisting = step
        return Saved(stall)


class Plain(_Base):
    """Any `State`, each worker's part of it in its own shard."""

    def __init__(self, state: State, folder: Path) -> None:
        super().__init__(folder)
        self._state, self._world = state, torch.distributed.get_world_size()
        self._local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._layout: dict[str, int] = {}
        ddp = dlrover_shims.module("ddp")
        self._storage = dlrover_shims.module("checkpointer").StorageType
        with surfaced("joining its saver"):
            self._checkpointer: Any = ddp.DdpCheckpointer(str(folder), self._local, self._world)
        self._engine = self._checkpointer._engine

    def save(self, step: int, training: dict[str, Any], *, persist: bool = False) -> Saved:
        """See `Engine.save`. `persist`: write it to `folder` too, in the background; saves are put off meanwhile."""
        began = time.perf_counter()
        pieces = {_key(piece): piece.tensor for piece in self._state.pieces()}
        self._check_layout({key: tensor.nbytes for key, tensor in pieces.items()})
        scalars = self._state.shapes() | self._state.numbers()
        about = {"step": step, "world": self._world, "training": training, "rng": self._state.rng(), "scalars": scalars}
        # As text: DLRover gives nested values the places of the first save, and fails on new ones.
        kept = {
            "pieces": pieces,
            "about": json.dumps(about),
        }
        kind = self._storage.DISK if persist else self._storage.MEMORY
        with surfaced(f"saving step {step}"):
            self._checkpointer.save_checkpoint(step, kept, storage_type=kind)
        return self._outcome(began, step, persist=persist)

    def load(self) -> Restored | None:
        """See `Engine.load`. From disk if memory has nothing."""
        with surfaced("looking for a snapshot"):
            step, held = self._engine.get_state_dict_from_memory()
        found = _gather((step, bool(held)))
        if any(step for step, _ in found):
            if not all(whole for _, whole in found):
                raise TrainerError(names.REASON_CHECKPOINT_LOST, _LOST)
            with surfaced("restoring from memory"), dlrover_shims.shards_in_memory(self._local) as shards:
                return self._restore(shards, self._engine._local_rank)
        with surfaced("restoring from disk"):
            held = self._engine._load_from_storage()
        if not any(_gather(bool(held))):
            return None
        return self._restore([held] if held else [], 0)

    def _restore(self, shards: list[dict[str, Any]], mine: int) -> Restored:
        """From the node's shards, of which number `mine` is this worker's."""
        if min(_gather(len(shards))) <= mine:
            raise TrainerError(names.REASON_CHECKPOINT_LOST, _LOST)
        about = json.loads(shards[mine]["about"])
        if about["world"] != self._world:
            raise TrainerError(
                names.REASON_CHECKPOINT_MISMATCH,
                f"flash engine dlrover: the snapshot is of {about['world']} workers and there are {self._world}; "
                "DLRover cannot restore at another size. Go on from durable storage, or use the engine native",
            )
        self._state.load(about["scalars"], lambda pieces: _fill(pieces, [shard["pieces"] for shard in shards]))
        self._state.load_rng(about["rng"])
        return Restored(about["step"], about["training"])

    def _check_layout(self, layout: dict[str, int]) -> None:
        if not self._layout:
            needed, free = sum(layout.values()), dlrover_shims.free_memory()
            if needed * self._local > free and not dlrover_shims.step_in_memory(self._engine):
                # DLRover finds out by SIGBUS.
                raise TrainerError(
                    names.REASON_OUT_OF_MEMORY,
                    f"flash engine dlrover: /dev/shm has {free} bytes free and snapshots need {needed} for each of "
                    f"{self._local} workers; mount a larger one",
                )
            self._layout = layout
        elif layout != self._layout:
            raise TrainerError(
                names.REASON_USER_ERROR,
                "flash engine dlrover: the state has other tensors than at the first save, and DLRover cannot lay out "
                "its memory anew. Save first when the optimizer has made its state, after the first step",
            )


class DeepSpeed(_Base):
    """A DeepSpeed engine, by its own save_checkpoint and load_checkpoint: what DLRover's users have."""

    def __init__(self, engine: Any, folder: Path) -> None:
        super().__init__(folder)
        self._deepspeed = engine
        self._storage = dlrover_shims.module("checkpointer").StorageType
        flash = dlrover_shims.module("deepspeed")
        with surfaced("joining its saver"):
            self._checkpointer: Any = flash.DeepSpeedCheckpointer(engine, str(folder))
        self._engine = self._checkpointer._async_save_engine

    def save(self, step: int, training: dict[str, Any], *, persist: bool = False) -> Saved:
        """See `Plain.save`."""
        began = time.perf_counter()
        kind = self._storage.DISK if persist else self._storage.MEMORY
        told = {"llmtrain": json.dumps({"step": step, "training": training})}
        with surfaced(f"saving step {step}"), dlrover_shims.torch_io_kept():
            self._checkpointer.save_checkpoint(str(self._folder), step, told, storage_type=kind)
        return self._outcome(began, step, persist=persist)

    def load(self) -> Restored | None:
        """See `Engine.load`. Memory's step if there is one, with the name of the step on disk."""
        from_memory = self._engine.load
        self._engine.load = lambda: dlrover_shims.own(from_memory())
        try:
            with surfaced("restoring"), dlrover_shims.torch_io_kept():
                in_memory = dlrover_shims.step_in_memory(self._engine)
                path, client = self._checkpointer.load_checkpoint(str(self._folder))
        finally:
            self._engine.load = from_memory
            # Else a worker saves again what it was handed, and not only what is its own.
            self._checkpointer._ckpt_agent.state_dict = {}
        told: dict[str, Any] = json.loads(client["llmtrain"]) if path else {"step": 0}
        found = _gather((in_memory, told["step"]))
        if not any(memory or loaded for memory, loaded in found):
            return None
        if len({loaded for _, loaded in found}) > 1 or not told["step"]:
            raise TrainerError(
                names.REASON_CHECKPOINT_LOST,
                f"flash engine dlrover: of (step in memory, step restored) the workers have {found}. DLRover leaves no "
                "snapshot where a worker was killed while it saved, and does not look into memory before a first step "
                f"was persisted to {self._folder}. Go on from durable storage, and persist the first step",
            )
        return Restored(told["step"], told["training"])


def _key(piece: Piece) -> str:
    return json.dumps([piece.parameter, piece.kind, piece.start])


def _fill(pieces: list[Piece], shards: list[dict[str, torch.Tensor]]) -> None:
    """Copy each piece from where it lies in the shards of this node. Raises on all workers or on none."""
    stored: dict[tuple[str, str], list[tuple[int, torch.Tensor]]] = {}
    for shard in shards:
        for key, tensor in shard.items():
            parameter, kind, start = json.loads(key)
            stored.setdefault((parameter, kind), []).append((start, tensor))
    missing = [piece for piece in pieces if not _copy(piece, stored.get((piece.parameter, piece.kind), []))]
    told = [f"{piece.kind} of {piece.parameter}" for piece in missing[:3]]
    lacking = {rank: each for rank, each in enumerate(_gather(told)) if each}
    if lacking:
        raise TrainerError(
            names.REASON_CHECKPOINT_MISMATCH,
            f"flash engine dlrover: not in the memory of the worker's node, by rank: {lacking}. DLRover restores only "
            "what this node's workers saved, at the same ZeRO stage",
        )


def _copy(piece: Piece, stored: list[tuple[int, torch.Tensor]]) -> bool:
    """Whether all of the piece was there."""
    stop, copied = piece.start + piece.tensor.numel(), 0
    for start, tensor in stored:
        first, last = max(start, piece.start), min(start + tensor.numel(), stop)
        if first < last:
            piece.tensor[first - piece.start : last - piece.start].copy_(tensor[first - start : last - start])
            copied += last - first
    return copied == piece.tensor.numel()


def _persisted(folder: Path) -> int:
    """The step that DLRover's saver committed last."""
    try:
        return int((folder / _TRACKER).read_text())
    except (FileNotFoundError, ValueError):  # before the first, and while it is written
        return 0


def _gather(value: Any) -> list[Any]:
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
