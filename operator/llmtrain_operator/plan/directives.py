"""What each agent is told: to be in the round that names it, to save and leave it, to wait, or to stop."""

from __future__ import annotations

from llmtrain_operator.contract.wire import Directive
from llmtrain_operator.plan.draft import Draft


def direct(run: Draft) -> None:
    current = run.round
    for pod in run.observed.pods:
        if pod.ended:
            continue
        if pod.deleting:
            run.directives[pod.uid] = Directive("stop", "the pod is being deleted")
        elif current and current.rank_of(pod.uid) is not None:
            run.directives[pod.uid] = (
                Directive("save", run.ending.message)
                if run.ending
                else Directive("run", f"round {current.number}", current)
            )
        else:
            run.directives[pod.uid] = Directive("wait", "not in a round yet", check=run.checks.get(pod.uid))
