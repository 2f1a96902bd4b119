"""`python -m llmtrain_trainer.chaos FAULT`: does a fault to the member whose pod it runs in, for tests of recovery.

`llmtrain chaos` runs it, by exec in a cluster. It acts on the processes of this very pod alone: those that carry its
UID in their environment, told apart by their command lines and parents. Exit code 0: it is done, and standard output
says what; 1: there was nothing to do it to, and standard error says what is missing. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmtrain_operator.contract import names
from llmtrain_trainer.agent.freezing import stat

_AGENT: Final = ("llmtrain-agent", "llmtrain_trainer.agent")
_INITS: Final = ("catatonit", "llmtrain_operator.local.init")
_ZYGOTE: Final = "llmtrain-zygote"
_HEAD_START: Final = 0.2
"""Seconds until the agent dies: with it goes the pod, and so would this command's answer."""
_PROOF: Final = 0.3
"""Seconds that the agent has for the checksums of the newest snapshot: less than until it misses the worker."""


class Missing(Exception):  # noqa: N818 - it says what happened
    """There is nothing to do it to."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the pod. `leads`: it is the first of its process group."""

    pid: int
    parent: int
    leads: bool
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cast:
    """Who is who in the pod."""

    agent: Process
    zygote: Process | None
    workers: tuple[Process, ...]


def cast(processes: Sequence[Process]) -> Cast:
    """Tell them apart. Raises `Missing` if there is no agent. Pure."""
    agent = next((each for each in processes if _is_agent(each.command)), None)
    if agent is None:
        raise Missing("no agent runs in this pod")
    zygote = next((each for each in processes if each.parent == agent.pid and each.command[0] == _ZYGOTE), None)
    parents = {agent.pid, zygote.pid if zygote else agent.pid}
    workers = [each for each in processes if each.parent in parents and each.leads and each is not zygote]
    return Cast(agent, zygote, tuple(sorted(workers, key=lambda each: each.pid)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one fault; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        print(FAULTS[options.fault](cast(_of_this_pod()), options), flush=True)
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llmtrain_trainer.chaos", description="Does a fault to this pod")
    parser.add_argument("fault", choices=list(FAULTS))
    parser.add_argument("--worker", type=int, default=0, help="which worker, counted round (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long, if it ends (default: %(default)s)")
    return parser


def _is_agent(command: tuple[str, ...]) -> bool:
    words = {Path(word).name for word in command}
    return bool(words & {*_AGENT}) and not words & {*_INITS}


def _of_this_pod() -> list[Process]:
    uid = os.environ.get(names.ENV_POD_UID)
    if not uid:
        raise Missing(f"this is no member's pod: ${names.ENV_POD_UID} is not set")
    mark = f"{names.ENV_POD_UID}={uid}\0".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark not in (folder / "environ").read_bytes() + b"\0" or int(folder.name) == os.getpid():
                continue
            command = (folder / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
        except OSError:  # another user's, or just gone
            continue
        if fields := stat(folder):
            group = int(fields[2])
            found.append(
                Process(int(folder.name), int(fields[1]), group == int(folder.name), tuple(command.split("\0")))
            )
    return found


def _one_of(workers: Sequence[Process], options: argparse.Namespace) -> Process:
    if not workers:
        raise Missing("no worker runs in this pod")
    number: int = options.worker
    return workers[number % len(workers)]


def _kill_worker(who: Cast, options: argparse.Namespace) -> str:
    return _send(signal.SIGKILL, _one_of(who.workers, options), "worker")


def _freeze_worker(who: Cast, options: argparse.Namespace) -> str:
    return _send(signal.SIGSTOP, _one_of(who.workers, options), "worker")


def _kill_zygote(who: Cast, options: argparse.Namespace) -> str:
    del options
    if who.zygote is None:
        raise Missing("workers of this pod are not forked from a zygote")
    return _send(signal.SIGKILL, who.zygote, "zygote")


def _kill_agent(who: Cast, options: argparse.Namespace) -> str:
    del options
    _send_soon(signal.SIGKILL, who.agent)
    return f"SIGKILL to agent {who.agent.pid}"


def _freeze_agent(who: Cast, options: argparse.Namespace) -> str:
    del options
    return _send(signal.SIGSTOP, who.agent, "agent")


def _corrupt_snapshots(who: Cast, options: argparse.Namespace) -> str:
    """Flip a bit in each snapshot of this pod's workers, then kill one, so that all read what they hold.

    The workers stand still meanwhile, so that no slot is written to: damage that comes before the checksums would be
    what they vouch for, and nobody could tell.
    """
    victim = _one_of(who.workers, options)
    try:
        for worker in who.workers:
            _send(signal.SIGSTOP, worker, "worker")
        damaged = _damage_own_snapshots()
        return f"{', '.join(damaged)} damaged, {_send(signal.SIGKILL, victim, 'worker')}"
    finally:
        for worker in who.workers:
            with contextlib.suppress(Missing):
                _send(signal.SIGCONT, worker, "worker")


def _damage_own_snapshots() -> list[str]:
    # Imported here: an image of the user's has an agent, and may lack what snapshots need.
    from llmtrain_trainer.flash import slot
    from llmtrain_trainer.flash.store import Store

    store = Store.of_this_pod()
    if store is None:
        raise Missing("this pod has no memory for snapshots")
    deadline = time.monotonic() + _PROOF
    while True:
        own = [held for held in store.scan()[0] if held.stem.name.startswith("own-")]
        proved = [held for held in own if slot.has_sums(held) and held.header.size]
        if (own and len(proved) == len(own)) or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    if not proved:
        raise Missing("this pod has no snapshot with checksums yet")
    for held in proved:
        _flip_a_bit(held.stem.with_suffix(slot.DATA), int(held.mark, 16) % held.header.size)
    return [held.name for held in proved]


def _flip_a_bit(path: Path, place: int) -> None:
    with path.open("r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, place)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), place)


def _fill_memory(who: Cast, options: argparse.Namespace) -> str:
    """Take all that is free in the store for a while. Whatever becomes of this process, it is given back."""
    del who
    root = os.environ.get(names.ENV_FLASH)
    if not root:
        raise Missing("this pod has no memory for snapshots")
    path = Path(root, "chaos")
    with path.open("wb", buffering=0) as file:
        path.unlink()
        taken = _fill(file.fileno())
        time.sleep(options.seconds)
    return f"{taken:,} bytes of memory taken for {options.seconds:g} s"


def _fill(file: int) -> int:
    taken, part = 0, 2**20
    while part:
        try:
            os.posix_fallocate(file, taken, part)
            taken += part
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            part //= 2
    return taken


def _send(number: signal.Signals, process: Process, what: str) -> str:
    try:
        os.kill(process.pid, number)
    except ProcessLookupError as error:
        raise Missing(f"{what} {process.pid} has just ended") from error
    return f"{number.name} to {what} {process.pid}"


def _send_soon(number: signal.Signals, process: Process) -> None:
    """From a process of its own, once this one has answered."""
    if os.fork():
        return
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    time.sleep(_HEAD_START)
    try:
        os.kill(process.pid, number)
    finally:
        os._exit(0)


FAULTS: Final[Mapping[str, Callable[[Cast, argparse.Namespace], str]]] = {
    "kill-worker": _kill_worker,
    "freeze-worker": _freeze_worker,
    "kill-zygote": _kill_zygote,
    "kill-agent": _kill_agent,
    "freeze-agent": _freeze_agent,
    "corrupt-snapshot": _corrupt_snapshots,
    "fill-memory": _fill_memory,
}


if __name__ == "__main__":
    sys.exit(main())
