"""What each pod was last told, by job. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from llmtrain_operator.contract.wire import Directive, Publish
from llmtrain_operator.coordinator.bundle import key_of


class Directives:
    """The newest directive of every pod. A pod is never sent back to an older round than it was once told."""

    def __init__(self) -> None:
        self._jobs: dict[str, dict[str, Directive]] = {}
        self._pods: dict[str, Directive] = {}

    def of(self, uid: str) -> Directive | None:
        """What the pod with this UID should be doing, None if nobody said."""
        return self._pods.get(uid)

    def replace(self, publish: Publish) -> Mapping[str, Directive]:
        """Take in a job's directives in place of its former ones; returns those that changed."""
        before = self._jobs.get(publish.job, {})
        now = {
            uid: before[uid] if uid in before and _goes_back(before[uid], directive) else directive
            for uid, directive in publish.directives.items()
        }
        for uid in before.keys() - now.keys():
            self._pods.pop(uid, None)
        self._pods.update(now)
        if now:
            self._jobs[publish.job] = now
        else:
            self._jobs.pop(publish.job, None)
        return {
            uid: directive for uid, directive in now.items() if uid not in before or _differ(before[uid], directive)
        }


def _differ(old: Directive | None, new: Directive) -> bool:
    return old is None or key_of(old) != key_of(new)


def _goes_back(old: Directive, new: Directive) -> bool:
    return old.round is not None and new.round is not None and new.round.number < old.round.number
