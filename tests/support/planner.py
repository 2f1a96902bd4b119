"""Jobs, pods and agents as the planner sees them, and one pass over them."""

from __future__ import annotations

import dataclasses

from llmtrain_operator.api import JobSpec, JobStatus
from llmtrain_operator.conditions import find
from llmtrain_operator.contract.wire import Report
from llmtrain_operator.plan import plan
from llmtrain_operator.state import AgentView, JobView, Observed, PodView

NOW = 1_700_000_000.0
JOB = JobView("j", "d", "job-uid", 1)


def spec(**fields) -> JobSpec:
    """A two-member job."""
    base = {
        "nodes": {"min": 2, "desired": 2},
        "model": {"preset": "gpt-tiny"},
        "data": {"source": "/data"},
        "training": {"maxSteps": 100},
    }
    return JobSpec.model_validate(base | fields)


def pod(index: int, **fields) -> PodView:
    """A running member pod of incarnation 1."""
    values = {
        "name": f"j-{index}-1", "namespace": "d", "uid": f"u{index}", "job": "j", "index": index, "incarnation": 1,
        "phase": "Running", "ready": True, "node": "n1", "deleting": False, "ip": "10.0.0.1", "reason": "",
        "message": "", "exit_code": None, "created": "", "scheduled": True, "unschedulable_message": "",
        "owner": "job-uid",
    }  # fmt: skip
    return PodView(**(values | fields))


def agent(index: int, state="joining", number=0, **fields) -> AgentView:
    """A connected agent."""
    port = 4000 if state == "joining" else 0
    report = Report("d/j", f"j-{index}-1", f"u{index}", index, 1, "10.0.0.1", state, number, port)
    return AgentView(f"u{index}", True, 0.0, "", dataclasses.replace(report, **fields))


def observed(*agents: AgentView, pods=None) -> Observed:
    """Two running pods with these agents."""
    there = (pod(0), pod(1)) if pods is None else tuple(pods)
    return Observed(there, {view.uid: view for view in agents}, children_applied=True)


def step(status: JobStatus, seen: Observed, *, job=JOB, now=NOW, problems=(), **fields):
    """One pass."""
    return plan(job, spec(**fields), problems, status, seen, now)


def condition(status: JobStatus, kind) -> tuple[str, str]:
    """Status and reason of a condition."""
    found = find(status.conditions, kind)
    assert found is not None
    return found.status, found.reason
