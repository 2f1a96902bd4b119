"""Rendezvous led by the operator: it names the members, so there is nothing to agree on and no timeout.

Each member always has a fresh TCPStore listening; the round's first member hosts the round with the one that it had
reported, and workers use it as MASTER_ADDR and MASTER_PORT. A store never serves a second round, which is what makes
restarts safe: keys of an earlier attempt cannot be found. Registered as a `torchrun` back end, so that
`torchrun --rdzv-backend=llmtrain ...` does the same in a pod of the operator with torchrun's own agent.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import (
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Check, Failure, Round
from llmtrain_trainer.agent.environment import Environment
from llmtrain_trainer.agent.failures import describe
from llmtrain_trainer.agent.membership import Membership
from llmtrain_trainer.agent.preflight import NodeCheck, open_preflight

log = logging.getLogger(__name__)

CONNECT_TIMEOUT: Final = timedelta(seconds=10)
STORE_TIMEOUT: Final = timedelta(minutes=5)


class OperatorRendezvous(RendezvousHandler):
    """A handler that waits for the operator's next round, and has the node measured meanwhile if it is told to."""

    def __init__(self, membership: Membership, node: NodeCheck | None = None) -> None:
        self._membership, self._node = membership, node
        self._store: TCPStore | None = None
        self._spare: TCPStore | None = None

    def get_backend(self) -> str:
        """The name for `--rdzv-backend`."""
        return names.TORCHRUN_BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Workers connect to the round's store: it is new in every round."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait until a newer round names this member, and enter it.

        Raises `RendezvousGracefulExitError` when told to stop.
        """
        self._note_torchrun_restart()
        self._store = None
        while True:
            if self._spare is None:
                self._spare = _serve_store(0)
            self._membership.join(self._spare.port)
            entered = self._await_round()
            try:
                return self._enter(entered)
            except DistError as error:
                self._membership.fail(_unreachable(entered, error))

    def is_closed(self) -> bool:
        """Whether the operator told this member to stop."""
        return self._membership.order().kind == "stop"

    def set_closed(self) -> None:
        """Nothing: only the operator ends a job."""

    def num_nodes_waiting(self) -> int:
        """1 when the workers are to leave their round, which makes torchrun restart them."""
        return int(self._membership.order().kind in ("leave", "save"))

    def get_run_id(self) -> str:
        """The job's name."""
        return self._membership.environment.job.replace("/", "_")

    def shutdown(self) -> bool:
        """torchrun is done: tell how it ended, and close the connection."""
        error = sys.exc_info()[1]  # torchrun calls this in a `finally`
        report = self._membership.report
        if error is None and report.state == "running":
            self._membership.succeed()
        elif report.state == "running":
            self._membership.fail(_final_failure(error, report.round))
        self._membership.close()
        self._store = self._spare = None
        return True

    def _await_round(self) -> Round:
        while True:
            order = self._membership.order()
            if order.kind == "stop":
                raise RendezvousGracefulExitError(order.reason)
            if order.kind == "enter" and order.round:
                return order.round
            if order.kind == "measure" and order.check and self._node:
                self._measure(self._node, order.check)
            else:
                self._membership.wait(1.0)

    def _measure(self, node: NodeCheck, check: Check) -> None:
        def called_away() -> bool:
            self._membership.wait(0.05)
            return self._membership.order().kind in ("stop", "enter")

        if found := node.run(check, called_away):
            self._membership.measured(found)

    def _enter(self, entered: Round) -> RendezvousInfo:
        """Raises `DistError` if the round's store is not there."""
        rank = entered.rank_of(self._membership.environment.uid)
        if rank is None:
            raise AssertionError(f"round {entered.number} does not name this member")
        host = entered.members[0]
        self._store = self._host(host.store_port) if rank == 0 else _join_store(host.host, host.store_port)
        self._spare = self._spare or _serve_store(0)
        self._membership.enter(entered, self._spare.port)
        log.info(
            "round %s: member %s of %s, store %s:%s", entered.number, rank, len(entered.members), *_address(entered)
        )
        store = PrefixStore(f"llmtrain/{entered.number}", self._store)  # workers have the rest of it to themselves
        return RendezvousInfo(store, rank, len(entered.members), RendezvousStoreInfo(*_address(entered)))

    def _host(self, port: int) -> TCPStore:
        """The fresh store on `port`: the one reported, unless this process is not the one that reported it."""
        if self._spare and self._spare.port == port:
            store, self._spare = self._spare, None
            return store
        return _serve_store(port)

    def _note_torchrun_restart(self) -> None:
        """Our own agent reports failures before it comes here; torchrun's just asks for the next round."""
        report = self._membership.report
        if report.state == "running" and self._membership.order().kind == "stay":
            text = "a worker failed and torchrun restarts them all; the pod's log has its words"
            self._membership.fail(Failure(names.REASON_USER_ERROR, text, report.round))


def handler_creator() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """torch's entry point for rendezvous back ends: a function that returns the one that makes handlers."""
    return create_handler


def create_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    """A handler for torchrun in a pod of the operator; the endpoint is not needed.

    Raises `EnvironmentIncomplete` elsewhere. To be told to stop is to get SIGTERM, as from the kubelet.
    """
    del parameters
    environment = Environment.read(os.environ)
    node = open_preflight(environment)
    membership = Membership(
        environment, on_stop=lambda: os.kill(os.getpid(), signal.SIGTERM), preflight=node.offer if node else None
    )
    membership.start()
    return OperatorRendezvous(membership, node)


def _serve_store(port: int) -> TCPStore:
    return TCPStore("localhost", port, is_master=True, wait_for_workers=False, timeout=STORE_TIMEOUT)


def _join_store(host: str, port: int) -> TCPStore:
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=CONNECT_TIMEOUT)
    store.set_timeout(STORE_TIMEOUT)
    return store


def _address(entered: Round) -> tuple[str, int]:
    return entered.members[0].host, entered.members[0].store_port


def _final_failure(error: BaseException | None, number: int) -> Failure:
    """Why torchrun gave up."""
    if not isinstance(error, ChildFailedError):
        return Failure(names.REASON_USER_ERROR, f"torchrun failed: {error}"[:2000], number)
    rank, failure = error.get_first_failure()
    written = "" if failure.error_file_data == {"message": "<NONE>"} else json.dumps(failure.error_file_data)
    return describe(failure.exitcode, written, "", round_number=number, rank=rank, step=0)


def _unreachable(entered: Round, error: Exception) -> Failure:
    host = entered.members[0]
    text = f"no connection to the store of {host.pod} at {host.host}:{host.store_port}: {error}"
    return Failure(names.REASON_PEER_LOST, text[:2000], entered.number)
