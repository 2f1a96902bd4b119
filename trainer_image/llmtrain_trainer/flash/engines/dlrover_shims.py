"""What DLRover 0.6.1 needs to work with torch 2.13 and DeepSpeed 0.19, its saver, and where its internals are read.

DLRover is imported here only, when an engine is made: it is no dependency of llmtrain and cannot be, because it does
not go with the torch that llmtrain pins. Not mended: `dlrover-run`, which dies with that torch (it calls
`SubprocessHandler` without `numa_options`); llmtrain's own agent takes its place.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from llmtrain_trainer.errors import ConfigError, TrainerError, reason_of

_PACKAGE: Final = "dlrover.trainer.torch.flash_checkpoint"
_MEMORY: Final = Path("/dev/shm")
_SOCKETS: Final = Path("/tmp/ckpt_sock")  # DLRover's, not to be configured
_RUN: Final = "TORCHELASTIC_RUN_ID"
_RAISED: Final = (ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def module(name: str) -> Any:
    """DLRover's module of this name below `trainer.torch.flash_checkpoint`, fit for use. Raises `ConfigError`."""
    os.environ.setdefault("DLROVER_LOG_LEVEL", "WARNING")  # five lines for each save otherwise
    try:
        found = importlib.import_module(f"{_PACKAGE}.{name}")
    except ImportError as error:
        raise ConfigError(
            f"flash engine dlrover: DLRover cannot be imported ({error}). It needs an environment of its own, with "
            "Python 3.11 or 3.12 and torch 2.13: install requirements/dlrover.txt in one and run the workers there, or "
            "use the engine native"
        ) from error
    if name == "deepspeed":
        _accept_keywords(found)
    return found


def _accept_keywords(found: Any) -> None:
    """DeepSpeed passes keywords to torch.save and torch.load that DLRover's stand-ins for them do not know."""
    agent = found.AsyncCheckpointAgent
    if hasattr(agent, "is_mended"):
        return
    save, load = agent.save, agent.load

    def save_any(self: Any, state_dict: Any, path: Any, **_: Any) -> None:
        save(self, state_dict, path)

    def load_any(self: Any, path: Any, map_location: Any = None, **_: Any) -> Any:
        return load(self, path, map_location)

    agent.save, agent.load, agent.is_mended = save_any, load_any, True
    # DeepSpeed's files hold more than weights; DLRover reads them with torch's default, which refuses that.
    found.torch_native_load = functools.partial(torch.load, weights_only=False)


@contextmanager
def torch_io_kept() -> Iterator[None]:
    """DLRover puts its own functions in place of torch.save and torch.load, and leaves them there when it fails."""
    save, load = torch.save, torch.load
    try:
        yield
    finally:
        torch.save, torch.load = save, load


@contextmanager
def surfaced(doing: str) -> Iterator[None]:
    """What DLRover raises, as a `TrainerError` that says that it was DLRover."""
    try:
        yield
    except _RAISED as error:
        raise TrainerError(
            reason_of(error), f"flash engine dlrover: {doing} failed: {type(error).__name__}: {error}"
        ) from error


def own(tree: Any) -> Any:
    """The same nested dicts and lists with copies of their tensors.

    What DLRover hands out lies in the snapshot's memory: training with it would overwrite the snapshot.
    """
    if isinstance(tree, torch.Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: own(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [own(value) for value in tree]
    return tree


def step_in_memory(engine: Any) -> int:
    """The step that the memory of this worker's node holds, 0 for none."""
    none = importlib.import_module("dlrover.python.elastic_agent.torch.ckpt_saver").CheckpointConfig()
    return int(engine._shm_handler.get_checkpoint_config(none).step)


@contextmanager
def shards_in_memory(local_workers: int) -> Iterator[list[dict[str, Any]]]:
    """What each worker of this node saved with the plain checkpointer. It must not be touched after the `with` block.

    Its tensors do not hold on to the snapshots' memory: once that is unmapped, reading them is a segmentation fault.
    """
    saver = importlib.import_module("dlrover.python.elastic_agent.torch.ckpt_saver")
    names = importlib.import_module("dlrover.python.common.constants").CheckpointConstant
    handlers = [saver.SharedMemoryHandler(number, host=False) for number in range(local_workers)]
    shards = [handler.load_state_dict() for handler in handlers]
    try:
        yield [shard[names.MODEL_STATES_NAME] for shard in shards if shard]
    finally:
        for handler in handlers:
            handler.close()


def check_saver(engine: Any) -> None:
    """Raises `TrainerError` if the process that keeps the snapshots is gone. DLRover reports that as a skipped save."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(engine._shm_lock._socket_file)
        except OSError as error:
            raise TrainerError(
                reason_of(error),
                f"flash engine dlrover: the process that keeps its snapshots is gone ({error}); nothing can be saved "
                "until the pod's workers start anew",
            ) from error


def run_id() -> str:
    """Which run's snapshots this process is to see. Raises `ConfigError`."""
    name = os.environ.get(_RUN, "")
    if not name:
        raise ConfigError(
            f"flash engine dlrover: {_RUN} has to be set: DLRover names its memory after it, and without it two jobs "
            "on one node write into each other's snapshots"
        )
    return name


class Saver:
    """DLRover's saver, which keeps the snapshots, as threads of this process. `close` it before the process ends.

    It has to outlive the workers whose snapshots are to survive them. Workers that are not told of one start their own,
    a child of the first worker that ends with it.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        os.environ[_RUN] = run
        module("checkpointer")
        self._class: Any = importlib.import_module("dlrover.python.elastic_agent.torch.ckpt_saver").AsyncCheckpointSaver
        self._class.start_async_saving_ckpt()

    def environment(self) -> dict[str, str]:
        """What workers need in their environment to find it."""
        return {_RUN: self._run, "ROLE_NAME": "dlrover-trainer"}

    def close(self) -> None:
        """The snapshots are gone after this."""
        saver = self._class.get_ckpt_saver()
        if saver is not None:
            saver.close()
        remove_leftovers(self._run)


def free_memory() -> int:
    """Bytes that snapshots may still take on this node."""
    found = os.statvfs(_MEMORY)
    return found.f_bavail * found.f_frsize


def remove_leftovers(run: str) -> list[str]:
    """Delete the memory and the sockets of a run whose processes have ended; what there was.

    DLRover deletes them only where its saver is closed in good order.
    """
    found = sorted(_MEMORY.glob(f"{run}_ckpt_shm_*"))
    for path in found:
        path.unlink(missing_ok=True)
    shutil.rmtree(_SOCKETS / run, ignore_errors=True)
    return [str(path) for path in found]
