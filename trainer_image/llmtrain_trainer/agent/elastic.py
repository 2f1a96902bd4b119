"""torch's elastic agent, led by the operator: no restart budget, no exit barrier, no polling of peers.

Pinned to one minor of torch by a contract test on every method that is overridden or relied on. Workers are killed
at once when they fail or their round is over, because a rank that waits for a dead peer learns nothing more; only a
stop gives them time. Runs in the main thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from typing import Any, Final

from torch.distributed.elastic.agent.server.api import DEFAULT_ROLE, RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous.api import RendezvousGracefulExitError

from llmtrain_operator.contract import names
from llmtrain_trainer.agent.failures import describe, first_to_fail
from llmtrain_trainer.agent.logs import RankLogs
from llmtrain_trainer.agent.membership import Membership
from llmtrain_trainer.agent.orphans import reap_orphans

log = logging.getLogger(__name__)

INTERVAL: Final = 0.05
"""Seconds between looks at the workers; orders wake the agent by themselves."""
KILL_TIMEOUT: Final = 10
"""Seconds to wait for a killed worker: longer only in uninterruptible sleep, which is beyond help."""
ALONE_LIMIT: Final = 60.0
"""Seconds that an agent whose work is done waits for a coordinator that is away."""


class MemberAgent(LocalElasticAgent):
    """Supervises one member's workers through all of its rounds, until stopped."""

    def __init__(self, spec: WorkerSpec, logs: RankLogs, membership: Membership) -> None:
        super().__init__(spec, logs, shutdown_timeout=membership.environment.grace)
        self._logs = logs
        self._membership = membership
        self._groups: set[int] = set()  # process groups of workers that were started and not yet killed

    def _invoke_run(self, role: str = DEFAULT_ROLE) -> RunResult:
        del role  # there is only one
        while True:
            self._initialize_workers(self._worker_group)  # raises RendezvousGracefulExitError when told to stop
            result = self._watch()
            if result is not None:
                return result
            self._remaining_restarts -= 1  # torchrun's TORCHELASTIC_RESTART_COUNT

    def _watch(self) -> RunResult | None:
        """Until the round is over for this member (None), or all is done and nobody there to say so."""
        finished: RunResult | None = None
        finished_at = 0.0
        while True:
            self._membership.wait(INTERVAL)
            reap_orphans(self._groups)
            order = self._membership.order()
            if order.kind == "stop":
                raise RendezvousGracefulExitError(order.reason)
            if order.kind == "leave":
                log.info("leaving round %s: %s", self._membership.report.round, order.reason)
                self._stop_workers(self._worker_group)
                self._membership.leave()
                return None
            if finished is None:
                result = self._monitor_workers(self._worker_group)
                self._worker_group.state = result.state
                if result.state == WorkerState.FAILED:
                    return None
                if result.state == WorkerState.UNKNOWN:
                    raise AssertionError("torch lost track of the workers; the operator replaces this pod")
                if result.state == WorkerState.SUCCEEDED:
                    log.info("all workers of round %s are done", self._membership.report.round)
                    self._membership.succeed()
                    finished, finished_at = result, time.monotonic()
            elif min(self._membership.alone_for, time.monotonic() - finished_at) > ALONE_LIMIT:
                return finished

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        os.environ[names.ENV_ROUND] = str(self._membership.report.round)  # workers inherit this environment
        pids: dict[int, Any] = super()._start_workers(worker_group)
        self._groups = set(pids.values())
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        exits = {local_rank: code for local_rank, code in self._exit_codes().items() if code}
        if exits:
            # Before torch looks: it would ask the others politely and wait for them.
            self._stop_workers(worker_group)
            self._report_failure(exits)
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        del worker_group
        self._shutdown(signal.SIGKILL, KILL_TIMEOUT)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        super()._shutdown(death_sig, timeout)
        while self._groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._groups.pop(), signal.SIGKILL)  # what a dead worker left behind, like data loaders
        self._logs.finish()

    def _report_failure(self, exits: dict[int, int]) -> None:
        local_rank = first_to_fail(exits, {rank: self._logs.error_file(rank) for rank in exits})
        try:
            error = self._logs.error_file(local_rank).read_text(errors="replace")
        except OSError:
            error = ""
        report = self._membership.report
        failure = describe(
            exits[local_rank],
            error,
            self._logs.tail(local_rank),
            round_number=report.round,
            rank=self._worker_group.workers[local_rank].global_rank,
            step=report.progress.step if report.progress else 0,
        )
        log.error("rank %s failed in round %s: %s", failure.rank, failure.round, failure.message)
        self._membership.fail(failure)

    def _exit_codes(self) -> dict[int, int | None]:
        if not isinstance(self._pcontext, SubprocessContext):
            return {}
        handlers = self._pcontext.subprocess_handlers
        return {local_rank: handler.proc.poll() for local_rank, handler in handlers.items()}
