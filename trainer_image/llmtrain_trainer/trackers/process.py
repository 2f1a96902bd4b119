"""The process of one backend: `python -m llmtrain_trainer.trackers.process BACKEND FD PARENT`, started by rank 0.

It reads points from the socket FD and says there what it has kept. It ends with its parent, whatever it is doing. A
library that raises ends it too, with the error as its last word; one that hangs is silent, and the parent judges that.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_trainer import config
from llmtrain_trainer.orphans import die_with
from llmtrain_trainer.trackers.backend import Backend, Fenced, Run
from llmtrain_trainer.trackers.backends import make
from llmtrain_trainer.trackers.points import Point

HEARTBEAT: Final = 0.5
"""Seconds between two words to the parent while there is nothing to do."""
_BATCH: Final = 200
_NICENESS: Final = 10
MAX_MESSAGE: Final = 64 * 1024
END: Final = "end"
"""What the parent says when there are no more points and the job is complete."""


def main(arguments: Sequence[str]) -> int:
    """Serve the parent until it says that this is the end."""
    name, link, parent = arguments[0], socket.socket(fileno=int(arguments[1])), int(arguments[2])
    die_with(parent)
    os.nice(_NICENESS)
    spec = os.environ[names.ENV_SPEC]
    try:
        serve(make(name, config.parse(spec)), this_run(json.loads(spec)), link)
    except Fenced as error:
        _say(link, error=str(error), reason="Fenced")
    except Exception as error:
        _say(link, error=f"{type(error).__name__}: {error}"[:1000], reason="TrackerFailed")
        raise
    else:
        return 0
    return 1


def this_run(spec: dict[str, Any]) -> Run:
    """That of the job whose member this is."""
    job = os.environ.get(names.ENV_JOB, "default/job")
    identity = os.environ.get(names.ENV_JOB_UID, "").replace("-", "") or job.replace("/", "-")
    number = int(os.environ.get(names.ENV_ROUND, "0"))
    return Run(identity, job.rpartition("/")[2], number, {"job": job, "spec": spec})


def serve(backend: Backend, run: Run, link: socket.socket) -> None:
    """Log what comes, until the end. A point of a step that the record has already is passed over."""
    reached = backend.begin(run)
    _say(link, kept=reached)
    while True:
        ready, _, _ = select.select([link], [], [], HEARTBEAT)
        received, last = _receive(link) if ready else ([], None)
        points = [point for point in received if point.step > reached]
        if points:
            backend.log(points)
            reached = points[-1].step
        if last == END:
            backend.finish()
            _say(link, kept=reached)
        if last is not None:
            return
        _say(link, kept=backend.kept())


def _receive(link: socket.socket) -> tuple[list[Point], str | None]:
    """What is there, in one batch; and the last word, which is empty where the parent has just gone."""
    points: list[Point] = []
    while len(points) < _BATCH:
        try:
            text = link.recv(MAX_MESSAGE, socket.MSG_DONTWAIT).decode()
        except BlockingIOError:
            break
        if text in (END, ""):
            return points, text
        points.append(Point.decode(text))
    return points, None


def _say(link: socket.socket, **word: Any) -> None:
    """Never waits: what a full socket does not take is said again at the next turn."""
    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
        link.send(json.dumps(word).encode(), socket.MSG_DONTWAIT)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # what libraries do at exit may hang, and everything is kept
