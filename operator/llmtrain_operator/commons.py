"""How jobs share the nodes of a cluster, as each of them sees it: what it may ask for, and what it should give up.

Pure. `autoscale.sharing` says who gets how many members; here is what that needs of live jobs. Jobs compete if their
members ask for the same kinds of devices on the same kinds of nodes; a member counts as one whatever its size, but is
given up only where the other's would fit. Others are taken to want what they have asked for, pods that wait for nodes
included, so that nothing is kept for a job that does not want it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from llmtrain_operator.api import JobSpec, JobStatus
from llmtrain_operator.autoscale import limits
from llmtrain_operator.autoscale.sharing import Claim, share
from llmtrain_operator.autoscale.throughput import fit
from llmtrain_operator.capacity import Inventory, Needs
from llmtrain_operator.conditions import seconds
from llmtrain_operator.plan.learning import prior, samples
from llmtrain_operator.state import PodView

_COMMON: Final = frozenset({"cpu", "memory", "ephemeral-storage"})

Pool = tuple[tuple[str, ...], tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Standing:
    """A job among others. `claim`: with as many members as it has asked for as its cap. `most`: how many it could ask
    for; the same where it does not scale itself. `placed`: its pods that have nodes, in order of their indexes, and
    then those that are being deleted."""

    claim: Claim
    needs: Needs
    most: int
    placed: tuple[PodView, ...] = ()
    spares: int = 0

    @property
    def pool(self) -> Pool:
        """Jobs of the same pool compete."""
        return tuple(name for name, _ in self.needs.requests if name not in _COMMON), self.needs.selector

    def leaving(self, inventory: Inventory) -> int:
        """Nodes that it still has and is about to leave to others."""
        return sum(inventory.usable(pod.node) for pod in self.placed[self.claim.holds + self.spares :])

    @property
    def lasting(self) -> tuple[object, ...]:
        """What others have to look again for when it changes."""
        claim = self.claim
        return self.pool, claim.priority, claim.minimum, claim.cap, claim.holds


@dataclass(frozen=True, slots=True)
class Part:
    """What falls to a job: `room` for further members, of which others may have to give up some; members `claimed` by
    jobs of higher priority; and the `claimants`, whose turn it is before this one asks for more."""

    room: int
    claimed: int = 0
    claimants: tuple[str, ...] = ()


def standing(
    key: str, created: str, spec: JobSpec, status: JobStatus, pods: Sequence[PodView], needs: Needs
) -> Standing:
    """Of a job as its status and pods are now. `created`: when, as the API server writes times. One that is over or
    suspended asks for nothing."""
    usable = [pod for pod in pods if pod.usable]
    placed = [pod for pod in usable if pod.scheduled]
    going = [pod for pod in pods if pod.deleting and pod.scheduled and not pod.ended]
    bounds = limits(spec)
    wanted = max(spec.nodes.min, min(bounds.cap, status.target_nodes or bounds.cap))
    probe = status.autoscale.probe.members if status.autoscale and status.autoscale.probe else 0
    idle = spec.suspend or status.completion_time is not None
    asked = wanted + probe
    holds = max(0, min(len(placed) - spec.nodes.spares, asked))
    claim = Claim(
        job=key,
        priority=max((pod.priority for pod in usable), default=0),
        since=seconds(created) if created else 0.0,
        minimum=0 if idle else spec.nodes.min,
        cap=0 if idle else asked,
        holds=holds,
        curve=fit(samples(status), prior(spec) if bounds.enabled else ()),
        least=bounds.min_efficiency,
    )
    most = bounds.cap if bounds.enabled and not idle else claim.cap
    return Standing(claim, needs, max(claim.cap, most), (*placed, *going), spec.nodes.spares)


class Commons:
    """All jobs, as they stood when they were last looked at."""

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}

    def update(self, key: str, new: Standing) -> tuple[str, ...]:
        """A job stands otherwise. The keys of the others that have to look again, none if that makes no difference."""
        old = self._standings.get(key)
        self._standings[key] = new
        if old is not None and old.lasting == new.lasting:
            return ()
        return self._rivals(key, new.pool) + (self._rivals(key, old.pool) if old and old.pool != new.pool else ())

    def forget(self, key: str) -> tuple[str, ...]:
        """A job is gone. The keys of the others that have to look again."""
        old = self._standings.pop(key, None)
        return self._rivals(key, old.pool) if old else ()

    def _rivals(self, key: str, pool: Pool) -> tuple[str, ...]:
        """Those that could do something about it: jobs that scale themselves."""
        return tuple(
            other
            for other, one in self._standings.items()
            if other != key and one.pool == pool and one.most > one.claim.minimum
        )

    def part(self, key: str, inventory: Inventory) -> Part:
        """What falls to this job, which has been looked at."""
        mine = self._standings[key]
        own = replace(mine.claim, cap=mine.most)
        free = inventory.room(mine.needs, max(0, mine.most - own.holds))
        others = {k: s for k, s in self._standings.items() if k != key and s.pool == mine.pool and s.claim.cap}
        if not others:
            return Part(free)
        everyone = [own, *(one.claim for one in others.values())]
        leaving = sum(s.leaving(inventory) for s in (mine, *others.values()))
        given = share(everyone, sum(claim.holds for claim in everyone) + leaving + free)
        gains = {k: given[k] - one.claim.holds for k, one in others.items() if given[k] > one.claim.holds}
        higher = {k: n for k, n in gains.items() if others[k].claim.priority > own.priority}
        room = max(0, given[own.job] - own.holds)
        before = [*higher, *(k for k in gains if k not in higher and not room)]
        claimed = min(max(0, own.holds - given[own.job]), sum(higher.values()))
        useful = any(inventory.fits_after(others[k].needs, pod) for k in higher for pod in mine.placed)
        return Part(room, claimed if useful else 0, tuple(sorted(before)))
