"""The agent once it has torch: what it is made of, and its life from the first report to the last."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from torch.distributed.elastic.agent.server.api import WorkerSpec

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Progress
from llmtrain_trainer.agent.elastic import MemberAgent
from llmtrain_trainer.agent.environment import Environment, worker_command
from llmtrain_trainer.agent.flash import AgentFlash, open_flash
from llmtrain_trainer.agent.lastgasp import last_gasp
from llmtrain_trainer.agent.logs import RankLogs
from llmtrain_trainer.agent.membership import Membership
from llmtrain_trainer.agent.metrics import open_metrics
from llmtrain_trainer.agent.preflight import open_preflight
from llmtrain_trainer.agent.progress import ProgressSocket
from llmtrain_trainer.agent.sampling import Watches
from llmtrain_trainer.agent.zygote import Zygote
from llmtrain_trainer.rendezvous import OperatorRendezvous

log = logging.getLogger(__name__)

ROLE: Final = "worker"


def run(environment: Environment, zygote: Zygote | None) -> int:
    """Be the agent; returns the exit code. `zygote`: what the workers are forked from, if anything."""
    with tempfile.TemporaryDirectory(prefix="llmtrain-") as folder:
        flash = open_flash(environment, Path(folder) / "flash")
        node = open_preflight(environment)
        membership = Membership(
            environment, flash_port=flash.port if flash else 0, preflight=node.offer if node else None
        )
        socket = Path(folder) / "progress"
        watches, book = Watches(), open_metrics(environment, membership)

        def hear(said: Progress) -> None:
            watches.hear(said)
            book.hear(said)
            membership.on_progress(replace(said, durations=None))

        progress = ProgressSocket(socket, hear)
        os.environ[names.ENV_PROGRESS_SOCKET] = str(socket)  # workers inherit it
        _obey_signals(membership)
        membership.start()
        rendezvous = OperatorRendezvous(membership, node)
        _agent(environment, membership, rendezvous, progress, flash, watches, zygote, Path(folder)).run()
        last_gasp(environment, membership.directive, membership.round)
        membership.end()
        membership.close()
    return 0 if membership.report.state == "succeeded" else names.EXIT_STOPPED


def _agent(
    environment: Environment,
    membership: Membership,
    rendezvous: OperatorRendezvous,
    progress: ProgressSocket,
    flash: AgentFlash | None,
    watches: Watches,
    zygote: Zygote | None,
    folder: Path,
) -> MemberAgent:
    command = worker_command(environment.spec)
    spec = WorkerSpec(
        role=ROLE,
        local_world_size=environment.procs,
        entrypoint=command[0],
        args=command[1:],
        rdzv_handler=rendezvous,
        max_restarts=int(environment.spec.get("recovery", {}).get("maxRestarts", 0)),
    )
    log.info("%s, member %s of %s: %s", environment.pod, environment.index, environment.job, " ".join(command))
    return MemberAgent(spec, RankLogs(folder), membership, progress.drain, flash, watches, zygote)


def _obey_signals(membership: Membership) -> None:
    def stop(number: int, _frame: object) -> None:
        membership.request_stop(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
