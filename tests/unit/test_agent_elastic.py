"""Workers that end between our look at them and torch's, microseconds later."""

from __future__ import annotations

from typing import Any

import pytest
from torch.distributed.elastic.agent.server.api import RunResult, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from llmtrain_operator.contract import names
from llmtrain_trainer.agent.elastic import MemberAgent
from llmtrain_trainer.agent.freezing import Freezes
from llmtrain_trainer.agent.parting import Parting
from llmtrain_trainer.agent.sampling import Watches


class Agent(MemberAgent):
    """Sees all of its workers alive, and keeps what it would report."""

    def __init__(self) -> None:
        self._asked, self._reference, self._parting = False, True, Parting.begin(True, 0.0, 0.0)
        self._worker_group: Any = None
        self._pcontext, self._freezes, self._watches = None, Freezes(), Watches()
        self.did: list[Any] = []

    def _exit_codes(self) -> dict[int, int | None]:
        return {0: None, 1: None}

    def _stop_workers(self, worker_group: Any) -> None:
        del worker_group
        self.did.append("stopped")

    def _report_failure(self, exits: dict[int, int]) -> None:
        self.did.append(exits)


@pytest.mark.parametrize(
    ("code", "state", "did"),
    [
        pytest.param(1, WorkerState.FAILED, ["stopped", {1: 1}], id="failed: its own words are told"),
        pytest.param(names.EXIT_STOPPED, WorkerState.HEALTHY, [], id="left as it was asked to: no failure"),
    ],
)
def test_who_ends_between_two_looks_is_judged_like_any_other(monkeypatch, code, state, did):
    """Torch alone has seen it; without this the failure had no reason, or a leave counted as one."""
    seen = RunResult(WorkerState.FAILED, failures={5: ProcessFailure(1, 4711, code, "<none>")})
    monkeypatch.setattr(LocalElasticAgent, "_monitor_workers", lambda *_: seen)
    agent = Agent()
    assert agent._monitor_workers(None).state == state
    assert agent.did == did
