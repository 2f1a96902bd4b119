"""This pod's membership: what it reports to the coordinator and what it was told last.

Shared by three threads: the agent's own, the connection's and the progress socket's. Signal handlers may call
`request_stop` only, which takes no lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable
from typing import Any

from llmtrain_operator.contract.wire import Directive, Failure, Preflight, Progress, Report, Round
from llmtrain_trainer.agent.connection import Connection
from llmtrain_trainer.agent.environment import Environment
from llmtrain_trainer.agent.orders import Order, decide, newest, paces


class Membership:
    """State and orders of one member. `round` is the newest that it entered, `entered` how many it has entered.

    `on_stop` is called once, in the connection's thread, when told to stop.
    """

    def __init__(
        self,
        environment: Environment,
        on_stop: Callable[[], None] = lambda: None,
        flash_port: int = 0,
        preflight: Preflight | None = None,
    ) -> None:
        self.environment = environment
        self._lock = threading.Lock()
        self._report = Report(
            job=environment.job,
            pod=environment.pod,
            uid=environment.uid,
            index=environment.index,
            incarnation=environment.incarnation,
            host=environment.host,
            state="joining",
            flash_port=flash_port,
            preflight=preflight,
        )
        self.round: Round | None = None
        self.entered = 0
        self._directive: Directive | None = None
        self._stop_reason: str | None = None
        self._on_stop: Callable[[], None] | None = on_stop
        # A SimpleQueue rather than an Event: its put() is safe in a signal handler that interrupts its get().
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._connection = Connection(
            environment.coordinators, environment.ca, environment.token_file, lambda: self.report, self._on_directive
        )

    def start(self) -> None:
        """Connect to the coordinator, in the background."""
        self._connection.start()

    def close(self) -> None:
        """Send the last report, if anyone listens, and end the connection."""
        self._connection.close()

    @property
    def report(self) -> Report:
        """What is being reported."""
        return dataclasses.replace(self._report, leaving=self._stop_reason) if self._stop_reason else self._report

    @property
    def directive(self) -> Directive | None:
        """What the coordinator said last."""
        return self._directive

    @property
    def alone_for(self) -> float:
        """Seconds since the coordinator was last there, 0 while it is."""
        return self._connection.alone_for

    # Told by the coordinator, the kubelet and the workers

    def request_stop(self, reason: str) -> None:
        """As if a `stop` directive had come, and the operator hears of it; safe in a signal handler."""
        self._stop_reason = reason
        self._news.put(None)
        self._connection.wake()

    def on_progress(self, progress: Progress) -> None:
        """Take in a worker's progress; the next heartbeat carries it. One of another round is dropped."""
        with self._lock:
            if progress.round == self._report.round and self._report.state == "running":
                all_paces = paces(self._report.paces, progress.pace)
                said = newest(self._report.progress, progress)
                self._report = dataclasses.replace(self._report, progress=said, paces=all_paces)

    def _on_directive(self, directive: Directive) -> None:
        last = self._directive
        if last is not None and last.action == directive.action == "stop" and not directive.persist:
            # Who is to write what is in memory is said while all pods are there; later there seems to be nobody.
            directive = dataclasses.replace(directive, persist=last.persist)
        self._directive = directive
        self._news.put(None)
        if directive.action == "stop" and self._on_stop:
            on_stop, self._on_stop = self._on_stop, None
            on_stop()

    # Asked by the agent

    def order(self) -> Order:
        """What to do now."""
        if self._stop_reason is not None:
            return Order("stop", self._stop_reason)
        report = self._report
        in_round = report.state in ("running", "succeeded")
        measured = report.preflight.attempt if report.preflight else None
        return decide(self._directive, report.uid, report.round, in_round=in_round, measured=measured)

    def wait(self, timeout: float) -> None:
        """Until something new was told, at most `timeout` seconds."""
        with contextlib.suppress(queue.Empty):
            self._news.get(timeout=timeout)
            while True:
                self._news.get_nowait()

    # Said by the agent

    def join(self, store_port: int) -> None:
        """Ready for a newer round; a fresh store listens on `store_port`."""
        self._say(state="joining", store_port=store_port)

    def measured(self, found: Preflight) -> None:
        """This is what the node can do."""
        self._say(preflight=found)

    def enter(self, entered: Round, spare_port: int) -> None:
        """In the round from now on. `spare_port` is where the store for a later one listens."""
        failure = self._report.failure
        if failure and failure.round < entered.number:
            failure = None
        self.round = entered
        self.entered += 1
        self._say(
            state="running", round=entered.number, store_port=spare_port, progress=None, failure=failure, paces=()
        )

    def leave(self) -> None:
        """No workers any more, ready for a newer round; the spare store is listening already.

        What they said last stays in the report: the operator may not have heard it yet.
        """
        self._say(state="joining")

    def fail(self, failure: Failure) -> None:
        """The workers of `failure.round` are no more, or never were."""
        self._say(state="failed", round=max(failure.round, self._report.round), failure=failure)

    def succeed(self) -> None:
        """All workers of this round ended well."""
        self._say(state="succeeded")

    def end(self) -> None:
        """No workers any more, and none to come."""
        if self._report.state != "succeeded":
            self._say(state="stopped")

    def _say(self, **changes: Any) -> None:
        with self._lock:
            self._report = dataclasses.replace(self._report, **changes)
        self._connection.wake()
