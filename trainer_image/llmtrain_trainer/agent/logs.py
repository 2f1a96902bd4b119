"""The workers' output: through pipes to this process's own, each line with its rank and without secrets.

torch's tee writes everything to files first, which fills the disk of a pod that trains for weeks; named pipes keep
nothing but the last lines of stderr, for the report of a failure.
"""

from __future__ import annotations

import os
import selectors
import shutil
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs, Std

from llmtrain_operator.contract import names
from llmtrain_trainer.agent.redaction import redactor

TAIL_LINES: Final = 30
MAX_LINE: Final = 64 * 1024
ERROR_FILE: Final = "TORCHELASTIC_ERROR_FILE"


@dataclass(slots=True)
class _Stream:
    """One worker's stdout or stderr."""

    prefix: bytes
    out: BinaryIO
    tail: deque[bytes]
    rest: bytes = b""

    def take(self, chunk: bytes) -> None:
        """Pass on whole lines; what progress bars end with a carriage return is a line too."""
        *lines, self.rest = (self.rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if len(self.rest) > MAX_LINE:
            lines, self.rest = [*lines, self.rest], b""
        self._pass_on(lines)

    def finish(self) -> None:
        if self.rest:
            self._pass_on([self.rest])
            self.rest = b""

    def _pass_on(self, lines: list[bytes]) -> None:
        if lines:
            lines = [redactor().line(line) for line in lines]
            self.tail.extend(lines)
            self.out.write(b"".join(self.prefix + line + b"\n" for line in lines))
            self.out.flush()


class Pump:
    """Moves the output of one round's workers, in a thread, until `finish`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = os.pipe()
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="worker-output", daemon=True)

    def add(self, fifo: Path, stream: _Stream) -> None:
        """Before `start`: create the pipe `fifo` and read it into `stream`."""
        os.mkfifo(fifo)
        # Also open for writing: then opening the other end never blocks, and writers may come and go.
        fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        self._selector.register(fd, selectors.EVENT_READ, stream)

    def start(self) -> None:
        """Begin to move."""
        self._thread.start()

    def finish(self) -> None:
        """Move what is in the pipes now, then end. The writers should be dead."""
        os.write(self._wake_out, b"x")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
        os.close(self._wake_out)
        self._selector.close()

    def _run(self) -> None:
        finishing = False
        while True:
            ready = [key for key, _ in self._selector.select(0 if finishing else None)]
            streams = [key for key in ready if key.fd != self._wake_in]
            if finishing and not streams:
                break
            finishing = finishing or len(streams) < len(ready)
            for key in streams:
                key.data.take(os.read(key.fd, MAX_LINE))
            if finishing and self._wake_in in self._selector.get_map():
                os.read(self._wake_in, 1)
        for key in self._selector.get_map().values():
            if key.data:
                key.data.finish()


@dataclass(slots=True)
class _Round:
    folder: Path
    pump: Pump | None
    tails: dict[int, deque[bytes]] = field(default_factory=dict)


class RankLogs(LogsSpecs):
    """torch's hook for where output goes, asked once per round; also where the workers' error files are.

    torch is told of error files that never exist: it would fail on one that was cut off by a signal or has other
    fields than its own.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), redirects=Std.ALL)
        self._folder = folder
        self._rounds = 0
        self._round: _Round | None = None

    @property
    def root_log_dir(self) -> str:
        """Where the pipes and error files are."""
        return str(self._folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Pipes and error files for the workers that are about to start, by local rank."""
        self.finish()
        if self._round:
            shutil.rmtree(self._round.folder, ignore_errors=True)
        self._rounds += 1
        folder = self._folder / str(self._rounds)
        folder.mkdir()
        pump = Pump()
        current = self._round = _Round(folder, pump)
        destinations = LogsDest()
        for local_rank, env in envs.items():
            prefix = f"[rank {env.get('RANK', local_rank)}] ".encode()
            tail = current.tails[local_rank] = deque(maxlen=TAIL_LINES)
            out, err = folder / f"{local_rank}.out", folder / f"{local_rank}.err"
            pump.add(out, _Stream(prefix, sys.stdout.buffer, deque(maxlen=0)))
            pump.add(err, _Stream(prefix, sys.stderr.buffer, tail))
            destinations.stdouts[local_rank], destinations.stderrs[local_rank] = str(out), str(err)
            destinations.error_files[local_rank] = str(folder / "none")
            env[ERROR_FILE] = str(self.error_file(local_rank))
            env[names.ENV_STACK_FILE] = str(self.stack_file(local_rank))
        pump.start()
        return destinations

    def finish(self) -> None:
        """All output of the round's dead workers is out."""
        if self._round and self._round.pump:
            pump, self._round.pump = self._round.pump, None
            pump.finish()

    def tail(self, local_rank: int) -> str:
        """The last lines of a worker's stderr; whole after `finish`."""
        lines = self._round.tails.get(local_rank, ()) if self._round else ()
        return b"\n".join(lines).decode(errors="replace")

    def stack_file(self, local_rank: int) -> Path:
        """Where the worker shows its stack, once it offers to."""
        return self.error_file(local_rank).with_suffix(".stack")

    def error_file(self, local_rank: int) -> Path:
        """Where the worker leaves a description of its error."""
        return (self._round.folder if self._round else self._folder) / f"{local_rank}.error.json"
