"""The process that a pod's workers are forked from: what they import it has imported, so a restart costs no imports.

`python -m llmtrain_trainer.zygote FD PARENT -m MODULE` or `... SCRIPT`, started by the agent (`agent.zygote`), which
asks by the socket FD for workers and hears there how they end. A worker begins as `python -m MODULE` or `python SCRIPT`
would: its own environment, output, process group and random numbers. Guarantee: it is forked only from a process of one
thread that has not touched an accelerator, else the agent is told why not; nobody here outlives the agent, nor a worker
this process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain_trainer import preload
from llmtrain_trainer.orphans import die_with


@dataclass(frozen=True, slots=True)
class Job:
    """A worker to become: its arguments, its whole environment, the files of its output."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    output: tuple[int, int]


def main(arguments: Sequence[str]) -> None:
    """Serve the agent until it is gone; in a worker, be that."""
    number, parent, program = int(arguments[0]), int(arguments[1]), arguments[2:]
    link = socket.socket(fileno=number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the agent, which tells the workers
    die_with(parent)
    _call_itself("llmtrain-zygote")
    began = time.monotonic()
    if program[0] == "-m":
        preload.trainer(program[1])
    else:
        preload.script(Path(program[0]))
    gc.collect()
    gc.freeze()  # a collection would touch every object, and so copy the pages that workers share
    _say(link, {"ready": time.monotonic() - began})
    job = _Forks(link).serve()
    if job is None:
        os._exit(0)  # what was imported has nothing to tidy up here, and some of it would complain
    run(program, job)


def run(program: Sequence[str], job: Job) -> None:
    """Be the worker; returns or raises as Python would with this program."""
    os.environ.clear()
    os.environ.update(job.environment)
    _call_itself(sys.executable, "-u", *program, *job.arguments)
    for target, file in zip((1, 2), job.output, strict=True):
        os.dup2(file, target)
        os.close(file)
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    sys.argv = [program[-1], *job.arguments]
    if program[0] == "-m":
        atexit.register(gc.unfreeze)  # else libraries complain at the end of what was never collected
        sys.modules.pop(program[1], None)  # it runs as __main__, and runpy warns of another one
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(program[0]).resolve().parent)
        sys.excepthook = _without_us(program[0])
        runpy.run_path(program[0], run_name="__main__")


def _without_us(script: str) -> Callable[[type[BaseException], BaseException, types.TracebackType | None], None]:
    """Tracebacks begin in the script, as its author knows them; there is none where it did not begin."""

    def hook(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        while trace and trace.tb_frame.f_code.co_filename != script:
            trace = trace.tb_next
        sys.__excepthook__(kind, error.with_traceback(trace), trace)

    return hook


class _Forks:
    """The agent's wishes, and the workers that live."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._workers: dict[int, int] = {}  # process id by pidfd

    def serve(self) -> Job | None:
        """Until the agent is gone: None. In a worker: its job."""
        while True:
            ready, _, _ = select.select([self._link.fileno(), *self._workers], [], [])
            for pidfd in self._workers.keys() & set(ready):
                self._bury(pidfd)
            if self._link.fileno() in ready:
                job = self._receive()
                if job is None:
                    return None
                if worker := self._fork(job):
                    return worker

    def _receive(self) -> Job | None:
        data, files, _, _ = socket.recv_fds(self._link, 4, 2)
        if not data:
            return None
        length = int.from_bytes(data + _exactly(self._link, 4 - len(data)), "little")
        asked: dict[str, Any] = json.loads(_exactly(self._link, length))
        return Job(tuple(asked["arguments"]), asked["environment"], (files[0], files[1]))

    def _fork(self, job: Job) -> Job | None:
        """The job in the worker, None here."""
        if why := unfit():
            _say(self._link, {"refused": why})
        else:
            zygote, pid = os.getpid(), os.fork()
            if pid == 0:
                os.setpgid(0, 0)
                die_with(zygote)
                for pidfd in self._workers:
                    os.close(pidfd)
                self._link.close()
                signal.signal(signal.SIGINT, signal.default_int_handler)
                return job
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.setpgid(pid, pid)  # here too: the agent may signal the group as soon as it knows the number
            self._workers[os.pidfd_open(pid)] = pid
            _say(self._link, {"started": pid})
        for file in job.output:
            os.close(file)
        return None

    def _bury(self, pidfd: int) -> None:
        pid = self._workers.pop(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        _say(self._link, {"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def unfit() -> str:
    """Why no worker can be forked from this process; "" if one can."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return f"it could not hear of a worker's end: {error.strerror}"
    if threads := len(list(Path("/proc/self/task").iterdir())) - 1:
        return f"{threads} threads run in it"
    cuda = sys.modules.get("torch.cuda")
    return "CUDA is initialized in it" if cuda and cuda.is_initialized() else ""


def _call_itself(*command: str) -> None:
    """Be found by this command line in `ps`: as what it is if there is room, else as one string that goes on over the
    first of the environment as it was at the start, as setproctitle(3) does it; the present one is elsewhere."""
    start, end, more, most = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:49])
    if not start:  # a kernel that does not tell
        return
    size, text = end - start, "\0".join(command).encode()
    if len(text) < size or end != more:
        text = text[: size - 1].ljust(size, b"\0")
    else:
        text = " ".join(command).encode()[: most - start - 1] + b"\0"
    ctypes.memmove(start, text, len(text))


def _exactly(link: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = link.recv(length - len(parts))
        if not part:
            raise EOFError("the agent ended in the middle of a word")
        parts += part
    return bytes(parts)


def _say(link: socket.socket, word: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next look finds that the agent is gone
        link.sendall(json.dumps(word).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
