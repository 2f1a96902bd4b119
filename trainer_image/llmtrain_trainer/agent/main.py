"""The process `llmtrain-agent`: all that a training pod does, below a first process that passes signals on.

Exit codes: 0 when the workers finished their job, 143 when it was stopped before, 2 when the environment is not that
of the operator's pods, 1 for a fault of its own.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

from torch.distributed.elastic.agent.server.api import WorkerSpec

from llmtrain_operator.contract import names
from llmtrain_trainer.agent.elastic import MemberAgent
from llmtrain_trainer.agent.environment import Environment, EnvironmentIncomplete, threads_per_worker, worker_command
from llmtrain_trainer.agent.flash import AgentFlash, open_flash
from llmtrain_trainer.agent.lastgasp import last_gasp
from llmtrain_trainer.agent.logs import RankLogs
from llmtrain_trainer.agent.membership import Membership
from llmtrain_trainer.agent.progress import ProgressSocket
from llmtrain_trainer.agent.redaction import redactor
from llmtrain_trainer.rendezvous import OperatorRendezvous

log = logging.getLogger(__name__)

ROLE: Final = "worker"


class _WithoutSecrets(logging.Formatter):
    """Of a record's traceback too."""

    def format(self, record: logging.LogRecord) -> str:
        return redactor().text(super().format(record))


def main() -> int:
    """Entry point; returns the exit code."""
    logging.basicConfig(level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_WithoutSecrets("[agent] %(message)s"))
    logging.getLogger("websockets").setLevel(logging.WARNING)
    try:
        environment = Environment.read(os.environ)
    except EnvironmentIncomplete as error:
        log.error("%s", error)  # noqa: TRY400 - the message is all there is to say
        return 2
    with tempfile.TemporaryDirectory(prefix="llmtrain-") as folder:
        flash = open_flash(environment, Path(folder) / "flash")
        membership = Membership(environment, flash_port=flash.port if flash else 0)
        socket = Path(folder) / "progress"
        progress = ProgressSocket(socket, membership.on_progress)
        _prepare_workers(environment, socket)
        _obey_signals(membership)
        membership.start()
        _agent(environment, membership, progress, flash, Path(folder)).run()
        last_gasp(environment, membership.directive, membership.round)
        membership.end()
        membership.close()
    return 0 if membership.report.state == "succeeded" else names.EXIT_STOPPED


def _agent(
    environment: Environment, membership: Membership, progress: ProgressSocket, flash: AgentFlash | None, folder: Path
) -> MemberAgent:
    command = worker_command(environment.spec)
    spec = WorkerSpec(
        role=ROLE,
        local_world_size=environment.procs,
        entrypoint=command[0],
        args=command[1:],
        rdzv_handler=OperatorRendezvous(membership),
        max_restarts=int(environment.spec.get("recovery", {}).get("maxRestarts", 0)),
    )
    log.info("%s, member %s of %s: %s", environment.pod, environment.index, environment.job, " ".join(command))
    return MemberAgent(spec, RankLogs(folder), membership, progress.drain, flash)


def _prepare_workers(environment: Environment, progress_socket: Path) -> None:
    """Set what the workers inherit."""
    os.environ[names.ENV_PROGRESS_SOCKET] = str(progress_socket)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_worker(environment.procs)))
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    # Ranks follow from the round: no need to exchange them through the store.
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"
    # torch's handlers raise an exception wherever the main thread is; ours leave it to the loop.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"


def _obey_signals(membership: Membership) -> None:
    def stop(number: int, _frame: object) -> None:
        membership.request_stop(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


if __name__ == "__main__":
    sys.exit(main())
