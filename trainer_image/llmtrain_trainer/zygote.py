"""The process that a pod's workers are forked from: what they import it has imported, so a restart costs no imports.

`python -m llmtrain_trainer.zygote FD PARENT MODULE`, started by the agent (`agent.zygote`), which asks by the socket FD
for workers and hears there how they end. A worker begins as `python -m MODULE` would: its own environment, output,
process group and random numbers. Guarantee: it is forked only from a process of one thread that has not touched
an accelerator, else the agent is told why not; nobody here outlives the agent, nor a worker this process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_trainer.orphans import die_with

_LAZY: Final = (
    "deepspeed",
    "deepspeed.runtime.zero.muon.original_muon",
    "safetensors.torch",
    "tokenizers",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "xxhash",
)
"""What training imports only once it runs, by itself or in its libraries."""
_THREADED: Final = ("mlflow",)
"""What starts threads when it is imported, as DeepSpeed's autotuner does wherever it is there: nobody can be forked
from a process that has any."""


@dataclass(frozen=True, slots=True)
class Job:
    """A worker to become: its arguments, its whole environment, the files of its output."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    output: tuple[int, int]


def main(arguments: Sequence[str]) -> None:
    """Serve the agent until it is gone; in a worker, be that."""
    number, parent, module = int(arguments[0]), int(arguments[1]), arguments[2]
    link = socket.socket(fileno=number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the agent, which tells the workers
    die_with(parent)
    _call_itself("llmtrain-zygote")
    began = time.monotonic()
    preload(module)
    gc.collect()
    gc.freeze()  # a collection would touch every object, and so copy the pages that workers share
    _say(link, {"ready": time.monotonic() - began})
    job = _Forks(link).serve()
    if job is None:
        os._exit(0)  # what was imported has nothing to tidy up here, and some of it would complain
    run(module, job)


def preload(module: str) -> None:
    """Import what the job's workers will need."""
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is first imported
    with _absent(*_THREADED), _compiled_later():
        for name in (module, *_LAZY):
            importlib.import_module(name)
        with contextlib.suppress(Exception):  # whatever is wrong with the spec, the workers say it in their own words
            _preload_model(os.environ[names.ENV_SPEC])


@contextlib.contextmanager
def _absent(*modules: str) -> Iterator[None]:
    """Where these are not imported yet, importing them fails meanwhile, as if they were not installed."""
    barred = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(barred))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in barred:
            del sys.modules[name]


@contextlib.contextmanager
def _compiled_later() -> Iterator[None]:
    """Functions that a module hands to `torch.compile` when it is imported are compiled when they are first called.
    DeepSpeed does that with those of an optimizer that few jobs have, and a seventh of all imports is for it alone."""
    import torch

    real: Any = torch.compile

    def later(function: Any = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(later, **options)
        if not isinstance(function, types.FunctionType):
            return real(function, **options)
        compiled = functools.cache(lambda: real(function, **options))
        return functools.wraps(function)(lambda *given, **named: compiled()(*given, **named))

    torch.compile = later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = real


def _preload_model(spec: str) -> None:
    """The code of the job's architecture, which transformers imports when the first one of its kind is made."""
    import torch

    from llmtrain_trainer import config, models

    class Unknown:
        vocab_size, eos = 8, 0

    parsed = config.parse(spec)
    if not parsed.model.pretrained:
        with torch.device("meta"):
            models.instantiate(models.model_config(parsed, Unknown()))


def run(module: str, job: Job) -> None:
    """Be the worker; returns or raises as `python -m` would."""
    _call_itself(sys.executable, "-u", "-m", module, *job.arguments)
    os.environ.clear()
    os.environ.update(job.environment)
    for target, file in zip((1, 2), job.output, strict=True):
        os.dup2(file, target)
        os.close(file)
    atexit.register(gc.unfreeze)  # else libraries complain at the end of what was never collected
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    sys.argv = [module, *job.arguments]
    sys.modules.pop(module, None)  # it runs as __main__, and runpy warns of another one
    runpy.run_module(module, run_name="__main__", alter_sys=True)


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
    """Be found by this command line in `ps`, as much of it as there is room for."""
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    text = "\0".join(command).encode()[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


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
