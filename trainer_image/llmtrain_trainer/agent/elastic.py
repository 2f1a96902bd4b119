"""torch's elastic agent, led by the operator: no restart budget, no exit barrier, no polling of peers.

Pinned to one minor of torch by a contract test on every method that is overridden or relied on. Workers are killed
at once when they fail or their round is over, because a rank that waits for a dead peer learns nothing more; only a
stop gives them time, and an order to save leaves the end to them. Runs in the main thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any, Final

from torch.distributed.elastic.agent.server.api import DEFAULT_ROLE, RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous.api import RendezvousGracefulExitError

from llmtrain_operator.contract import names
from llmtrain_operator.contract.codec import encode
from llmtrain_operator.contract.wire import Failure
from llmtrain_trainer.agent.environment import runs_reference_trainer, worker_program
from llmtrain_trainer.agent.failures import MAX_TRACEBACK, describe, first_to_fail
from llmtrain_trainer.agent.flash import AgentFlash
from llmtrain_trainer.agent.forking import forked_from
from llmtrain_trainer.agent.freezing import LIMIT, Freezes
from llmtrain_trainer.agent.logs import RankLogs
from llmtrain_trainer.agent.membership import Membership
from llmtrain_trainer.agent.orders import Order
from llmtrain_trainer.agent.parting import Parting
from llmtrain_trainer.agent.redaction import redactor
from llmtrain_trainer.agent.sampling import Watches
from llmtrain_trainer.agent.zygote import Zygote

log = logging.getLogger(__name__)

INTERVAL: Final = 0.05
"""Seconds between looks at the workers; orders wake the agent by themselves."""
KILL_TIMEOUT: Final = 10
"""Seconds to wait for a killed worker: longer only in uninterruptible sleep, which is beyond help."""
ZYGOTE_LIMIT: Final = 300.0
"""Seconds for the zygote's imports: from a slow volume they take minutes."""
ALONE_LIMIT: Final = 60.0
"""Seconds that an agent whose work is done waits for a coordinator that is away."""


class MemberAgent(LocalElasticAgent):
    """Supervises one member's workers through all of its rounds, until stopped.

    `drain` makes the membership hear all that the workers have said so far; `flash` keeps their snapshots, if they
    take any; `zygote` is what they are forked from, unless they are started anew each time.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        logs: RankLogs,
        membership: Membership,
        drain: Callable[[], None],
        flash: AgentFlash | None = None,
        watches: Watches | None = None,
        zygote: Zygote | None = None,
    ) -> None:
        super().__init__(spec, logs, shutdown_timeout=membership.environment.grace)
        self._logs, self._drain, self._flash, self._zygote = logs, drain, flash, zygote
        self._membership = membership
        self._reference = runs_reference_trainer(membership.environment.spec)
        self._parting: Parting | None = None  # how this round's workers may end before they are done
        self._asked = False  # to save and leave
        self._freezes, self._watches = Freezes(), watches or Watches()
        self._groups: set[int] = set()  # process groups of workers that were started and not yet killed

    def _invoke_run(self, role: str = DEFAULT_ROLE) -> RunResult:
        del role  # there is only one
        while True:
            self._await_zygote()
            self._initialize_workers(self._worker_group)  # raises RendezvousGracefulExitError when told to stop
            result = self._watch()
            if result is not None:
                return result
            self._remaining_restarts -= 1  # torchrun's TORCHELASTIC_RESTART_COUNT

    def _await_zygote(self) -> None:
        """Before a round is joined, so that no other member waits for our imports. One that has died is made anew."""
        end = time.monotonic() + ZYGOTE_LIMIT
        while self._zygote:
            self._zygote.listen()
            if self._zygote.ready and not self._zygote.gone:
                return
            order = self._membership.order()
            if order.kind == "stop":
                raise RendezvousGracefulExitError(order.reason)
            if self._zygote.gone or time.monotonic() > end:
                log.warning("the zygote %s", "has ended" if self._zygote.gone else "is too slow: workers start anew")
                self._zygote.close()
                self._zygote = self._zygote.again()
            else:
                self._zygote.listen(INTERVAL)

    def _watch(self) -> RunResult | None:
        """Until the round is over for this member (None), or all is done and nobody there to say so."""
        finished: RunResult | None = None
        finished_at = 0.0
        while True:
            self._membership.wait(INTERVAL)
            order = self._membership.order()
            if order.kind == "stop":
                raise RendezvousGracefulExitError(order.reason)
            if order.kind == "leave":
                self._leave(order.reason)
                return None
            if finished is None:
                if self._have_parted(order):
                    self._leave("the workers ended as they were asked to")
                    return None
                result = self._monitor_workers(self._worker_group)
                self._worker_group.state = result.state
                if result.state == WorkerState.FAILED:
                    return None
                if result.state == WorkerState.UNKNOWN:
                    raise AssertionError("torch lost track of the workers; the operator replaces this pod")
                if result.state == WorkerState.SUCCEEDED:
                    log.info("all workers of round %s are done", self._membership.report.round)
                    self._drain()
                    self._membership.succeed()
                    finished, finished_at = result, time.monotonic()
            elif min(self._membership.alone_for, time.monotonic() - finished_at) > ALONE_LIMIT:
                return finished

    def _leave(self, reason: str) -> None:
        log.info("leaving round %s: %s", self._membership.report.round, reason)
        self._stop_workers(self._worker_group)
        self._membership.leave()

    def _have_parted(self, order: Order) -> bool:
        """Ask the workers to save and leave, once, if that is the order; whether they have left the round."""
        if order.kind == "save" and not self._asked:
            log.info("round %s: the workers are to save and leave: %s", self._membership.report.round, order.reason)
            self._asked = True
            self._parting = Parting.begin(self._reference, time.monotonic(), self._membership.environment.grace)
            self._signal_workers(self._parting.signal)
        return self._parting is not None and self._parting.over(self._exit_codes(), time.monotonic())

    def _signal_workers(self, number: signal.Signals) -> None:
        # Only the workers themselves know what SIGUSR1 means; SIGTERM is for all, as when torch stops them.
        send = os.killpg if number == signal.SIGTERM else os.kill
        for pid in self._alive().values():
            with contextlib.suppress(ProcessLookupError):  # a forked one may be gone and buried meanwhile
                send(pid, number)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        os.environ[names.ENV_ROUND] = str(self._membership.report.round)  # workers inherit this environment
        if entered := self._membership.round:
            os.environ[names.ENV_AVOID] = encode(entered.avoid)
            if self._flash:
                os.environ.update(self._flash.enter(entered))
        program = worker_program(self._membership.environment.spec)
        with forked_from(self._zygote, program) if self._zygote else contextlib.nullcontext():
            pids: dict[int, Any] = super()._start_workers(worker_group)
        self._groups = set(pids.values())
        ranks = {worker.local_rank: worker.global_rank for worker in worker_group.workers}
        self._watches.begin(ranks, {local_rank: self._logs.stack_file(local_rank) for local_rank in ranks})
        self._asked = False
        self._parting = Parting.begin(True, 0.0, 0.0) if self._reference else None
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        alive = self._alive() if self._reference or not self._asked else {}  # a script that leaves has its grace
        if frozen := self._freezes.look(alive, time.monotonic()):
            return self._end_hanging(*frozen, f"was stopped (SIGSTOP) and did not go on for {LIMIT} s: it was killed")
        if hanging := self._watches.look(alive):
            local_rank, hang = hanging
            stuck = f"takes no step and hangs in {hang.where}: it was killed"
            waits = f"takes no step and waits for the others in {hang.where}: it was killed"
            if hang.waits:
                return self._end_hanging(local_rank, hang.seconds, waits, names.REASON_PEER_LOST)
            return self._end_hanging(local_rank, hang.seconds, stuck)
        exits = {local_rank: code for local_rank, code in self._exit_codes().items() if code}
        failed = {local_rank: code for local_rank, code in exits.items() if not self._is_excused(code)}
        if failed:
            # Before torch looks: it would ask the others politely and wait for them.
            self._fail(failed)
        elif exits or (self._asked and not self._reference):
            return RunResult(state=WorkerState.HEALTHY)  # on the way out: how it ends is seen by `_have_parted`
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED and not failed:
            return self._ended_meanwhile(result)
        return result

    def _end_hanging(self, local_rank: int, lasted: float, what: str, reason: str = names.REASON_HANG) -> RunResult:
        report = self._membership.report
        rank = self._worker_group.workers[local_rank].global_rank
        step = report.progress.step if report.progress else 0
        stack = redactor().text(self._watches.stacks.get(local_rank, ""))[-MAX_TRACEBACK:]
        text = f"rank {rank} {what}"
        log.error("round %s: %s\n%s", report.round, text, stack)
        self._stop_workers(self._worker_group)
        failure = Failure(reason, text, report.round, rank, step, traceback=stack, lasted=round(lasted, 3))
        self._membership.fail(failure)
        return RunResult(state=WorkerState.FAILED)

    def _ended_meanwhile(self, result: RunResult) -> RunResult:
        """What torch saw end just after we had looked, judged as if we had seen it."""
        exits = {failure.local_rank: failure.exitcode for failure in result.failures.values()}
        failed = {local_rank: code for local_rank, code in exits.items() if not self._is_excused(code)}
        if not failed:
            return RunResult(state=WorkerState.HEALTHY)
        self._fail(failed)
        return result

    def _fail(self, exits: dict[int, int]) -> None:
        self._stop_workers(self._worker_group)
        self._report_failure(exits)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        del worker_group
        self._shutdown(signal.SIGKILL, KILL_TIMEOUT)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        super()._shutdown(death_sig, timeout)
        while self._groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._groups.pop(), signal.SIGKILL)  # what a dead worker left behind, like data loaders
        self._logs.finish()
        self._drain()

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

    def _is_excused(self, code: int) -> bool:
        return self._parting is not None and self._parting.excuses(code)

    def _alive(self) -> dict[int, int]:
        return {local_rank: worker.pid for local_rank, worker in self._processes().items() if worker.poll() is None}

    def _exit_codes(self) -> dict[int, int | None]:
        return {local_rank: worker.poll() for local_rank, worker in self._processes().items()}

    def _processes(self) -> dict[int, subprocess.Popen[bytes]]:
        if not isinstance(self._pcontext, SubprocessContext):
            return {}
        return {local_rank: handler.proc for local_rank, handler in self._pcontext.subprocess_handlers.items()}
