"""`llmtrain local`: train a job on this machine, without a cluster."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from llmtrain_operator.cli import view
from llmtrain_operator.cli.offline import jobs_in, problems_of
from llmtrain_operator.cli.report import JobReport, report
from llmtrain_operator.cli.status import PLAIN_WIDTH, Lines
from llmtrain_operator.local.folder import RunFolder, root
from llmtrain_operator.state import PodView

if TYPE_CHECKING:
    from llmtrain_operator.local.cluster import LocalCluster
    from llmtrain_operator.local.run import Stop

_NEEDED: Final = ("torch", "deepspeed", "llmtrain_trainer", "prometheus_client")
_AGAIN: Final = {signal.SIGINT: "another Ctrl-C"}


@click.command()
@click.argument("file", type=click.File("r", encoding="utf-8"))
@click.option(
    "--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Members and spares that find room."
)
@click.option("--logs/--no-logs", "with_logs", default=True, show_default=True, help="Print what the members print.")
def local(file: IO[str], *, nodes: int, with_logs: bool) -> None:
    """Train the job in FILE (- for standard input) on this machine, with processes in place of pods.

    Ctrl-C saves the job and ends it with all its processes; the same command takes it up again. A second Ctrl-C ends it
    at once. From another terminal `status`, `logs`, `events`, `explain`, `scale`, `suspend` and `resume` work on it
    with --local. Everything, pvc:// volumes too, is kept in ~/.cache/llmtrain/local. Exit code 0 if the job completed,
    1 if it failed.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(f"{', '.join(missing)} not installed: pip install 'llmtrain[operator,trainer]'")
    job = _checked(file)
    place = root(os.environ)
    folder = RunFolder(place / "jobs" / job["metadata"]["name"])
    with _alone(folder):
        sys.exit(asyncio.run(_train(job, nodes, folder, place / "volumes", with_logs=with_logs)))


def _checked(file: IO[str]) -> dict[str, Any]:
    jobs = jobs_in(file)
    if len(jobs) != 1:
        raise click.ClickException(f"{file.name}: there are {len(jobs)} jobs in it; give one")
    job = jobs[0]
    if problems := problems_of(job):
        words = [f"{each.path}: {each.message} (is {each.value!r}). {each.remedy}" for each in problems]
        raise click.ClickException("\n".join(words))
    return job


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Hold the job's folder for this process, or say that another one has it."""
    folder.make()
    with folder.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise click.ClickException(f"{folder.path.name} is being trained by another `llmtrain local`") from error
        yield


async def _train(job: dict[str, Any], nodes: int, folder: RunFolder, volumes: Path, *, with_logs: bool) -> int:
    # Imported where it is needed: the other commands run where only the core dependencies are installed.
    from llmtrain_operator.local.run import Run, Stop, train

    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=False, highlight=False, emoji=False)
    logging.basicConfig(level=logging.WARNING, format="[operator] %(message)s")
    stop = Stop()
    signals = _Signals(job, console, stop)
    last: list[JobReport] = []
    with Live(console=console, auto_refresh=False) if console.is_terminal else Lines() as display:

        def show(cluster: LocalCluster) -> bool:
            current = cluster.job(cluster.key)
            if current is None:
                return True
            seen = report(current, cluster.pods(cluster.key), cluster.events)
            last[:] = [seen]
            if isinstance(display, Live):
                display.update(view.page(seen, time.time(), bar=True), refresh=True)
            else:
                display.show([seen], current)
            return seen.ended

        def say(pod: PodView, line: str) -> None:
            if with_logs:
                prefix = Text(f"[{pod.index}] ", view.member_colour(pod.index))
                console.print(prefix + Text(line), soft_wrap=True)

        await train(Run(job, nodes, folder, volumes), say, show, stop)
    if last and last[0].ended:
        return 0 if last[0].state == "Complete" else 1
    return 128 + (signals.first or 0)


class _Signals:
    """What ends a run from outside: asked once it saves and ends, asked again it ends at once. Begins to listen."""

    def __init__(self, job: dict[str, Any], console: Console, stop: Stop) -> None:
        self.first: signal.Signals | None = None
        self._job, self._console, self._stop = job, console, stop
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._obey, number)

    def _obey(self, number: signal.Signals) -> None:
        self._stop.press()
        if number == signal.SIGHUP:
            _fall_silent()
        elif self.first is None:
            self._console.print(
                f"{_farewell(self._job)}; {_AGAIN.get(number, 'the same signal again')} ends it at once"
            )
        self.first = self.first or number


def _farewell(job: dict[str, Any]) -> str:
    if job["spec"].get("entrypoint"):
        return "stopping; what the script itself has saved stays"
    if (job["spec"].get("checkpoint") or {}).get("durable"):
        return "saving a checkpoint, then stopping"
    return "stopping; without checkpoint.durable the steps trained so far are saved nowhere"


def _fall_silent() -> None:
    """The terminal is gone: what is still printed must not fail, for there is a checkpoint to be saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
