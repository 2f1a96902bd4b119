"""Carries out a campaign: waits until the job trains, strikes, waits until it trains again, and says what it cost.

Looks at the job through the same source as the other commands. Every wait ends after `patience` seconds; a job that did
not get over a blow by then, or that has ended, is not struck again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from llmtrain_operator.api import IncidentStatus, JobSpec, JobStatus
from llmtrain_operator.api.validation import parse
from llmtrain_operator.chaos import campaign, survival
from llmtrain_operator.chaos.campaign import Blow
from llmtrain_operator.chaos.faults import Fault
from llmtrain_operator.ports import Rejected, Unavailable
from llmtrain_operator.state import PodView

_INTERVAL: Final = 0.2
_TRIES: Final = 25
"""Of what may not work for a moment: between two rounds there is no victim, and a server may be away."""
_UNNOTICED: Final = 15.0
"""Seconds until a fault that nobody has told of will not be told of any more: longer than a hang goes unnoticed."""


class Place(Protocol):
    """Where the job is: `cli.source.JobSource` as far as it is needed. Raises `Rejected`, `Unavailable`."""

    async def job(self, namespace: str, name: str) -> dict[str, Any]:
        """The job object."""

    async def pods(self, namespace: str, job: str) -> list[PodView]:
        """Its members' pods."""


class Hand(Protocol):
    """What does the faults in one kind of place."""

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Those that it can do."""

    async def strike(self, fault: Fault, pod: PodView, worker: int, seconds: float) -> str:
        """Do it to a member, or to what it runs on; what was done. `worker`: which one, counted round; `seconds`: how
        long, of what ends by itself. Raises `Rejected` if there is nothing to do it to, `Unavailable`."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a campaign is run. `member`: the only one that it is done to; `seconds`: how long a fault lasts that ends by
    itself; `unsafe`: also what the job does not survive."""

    member: int | None = None
    seconds: float = 10.0
    patience: float = 300.0
    unsafe: bool = False


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault that was done, and to whom."""

    number: int
    fault: Fault
    member: int
    did: str


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of faults that are judged together: after `seconds` the job was as before. `wrongs` should not be."""

    struck: tuple[Struck, ...]
    incidents: tuple[IncidentStatus, ...]
    seconds: float
    wrongs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """The job, and where it is."""

    place: Place
    namespace: str
    name: str


class Campaign:
    """`say` is called with each trial as soon as it is over, `tell` with what else there is to be known."""

    def __init__(
        self, target: Target, hand: Hand, terms: Terms, say: Callable[[Trial], None], tell: Callable[[str], None]
    ) -> None:
        self._target, self._hand, self._terms, self._say, self._tell = target, hand, terms, say, tell

    async def run(self, blows: Sequence[Blow]) -> list[Trial]:
        """Ends early with the job, or with the first trial that went wrong. Raises `Rejected` if the job is not there,
        or does not come to train."""
        trials: list[Trial] = []
        known = campaign.last_number((await self._look())[1])
        for group in campaign.groups(blows):
            before = await self._ready(group[0].pause)
            unprovoked = campaign.since(before, known)
            trial = await self._try(group, before)
            if trial is None:
                break
            words = [f"incident {each.number} ({each.reason}) came without a fault" for each in unprovoked]
            trial = dataclasses.replace(trial, wrongs=(*words, *trial.wrongs))
            known = campaign.last_number((await self._look())[1])
            trials.append(trial)
            self._say(trial)
            if trial.wrongs:
                break
        return trials

    async def _ready(self, pause: float) -> JobStatus:
        """Once it has trained for so long, whole, or has ended. Raises `Rejected` if it does not come to that."""

        def ready(spec: JobSpec, status: JobStatus) -> bool:
            return status.completion_time is not None or survival.why_not_yet(spec, status) is None

        while await self._until(ready):
            await asyncio.sleep(pause)
            spec, status = await self._look()
            if ready(spec, status):
                return status
        why = survival.why_not_yet(*await self._look()) or "it was late"
        raise Rejected(f"{self._target.name} does not come to train: {why}")

    async def _try(self, group: Sequence[Blow], before: JobStatus) -> Trial | None:
        """None: nothing could be done."""
        struck: list[Struck] = []
        began = time.monotonic()
        for blow in group:
            if struck:
                await asyncio.sleep(blow.pause)
            spec, status = await self._look()
            if late := survival.why_too_late(status):
                self._tell(f"no more faults: {late}")
                break
            struck += await self._strike(blow, spec, status)
        if not struck:
            return None
        faults = [each.fault for each in struck]
        over = await self._over(faults, before)
        status = (await self._look())[1]
        return Trial(
            struck=tuple(struck),
            incidents=campaign.since(status, campaign.last_number(before)),
            seconds=round(time.monotonic() - began, 1),
            wrongs=tuple(campaign.wrongs(faults, before, status, over=over)),
        )

    async def _over(self, faults: Sequence[Fault], before: JobStatus) -> bool:
        """Whether the job got over them in time. It may seem to before the last is noticed: a hang takes a while."""

        def over(spec: JobSpec, status: JobStatus) -> bool:
            return campaign.is_over(faults, spec, before, status)

        if not await self._until(over):
            return False
        if await self._until(lambda _, status: campaign.all_told(faults, before, status), _UNNOTICED):
            return await self._until(over)
        return True

    async def _strike(self, blow: Blow, spec: JobSpec, status: JobStatus) -> list[Struck]:
        fault, refusals = campaign.choose(blow, spec, status, unsafe=self._terms.unsafe)
        if fault is None:
            self._tell(f"{blow.number}: nothing that the job could bear: {refusals}")
            return []
        why = ""
        for _ in range(_TRIES):
            try:
                return [await self._hit(fault, blow)]
            except (Rejected, Unavailable) as error:
                why = str(error)
            await asyncio.sleep(_INTERVAL)
        self._tell(f"{blow.number}: {fault.name} could not be done: {why}")
        return []

    async def _hit(self, fault: Fault, blow: Blow) -> Struck:
        status = (await self._look())[1]
        chosen = campaign.victim(blow.luck, status, self._terms.member)
        if chosen is None or status.round is None:
            raise Rejected("nobody trains")
        uids = {each.uid for each in status.round.members} if fault.everyone else {chosen.uid}
        # By the round in the job's own status: whatever else carries its label is none of its members.
        pods = await self._target.place.pods(self._target.namespace, self._target.name)
        hit = [pod for pod in pods if pod.uid in uids]
        if len(hit) < len(uids):
            raise Rejected("its pod is gone")
        did = await asyncio.gather(
            *(self._hand.strike(fault, pod, blow.number, self._terms.seconds) for pod in hit), return_exceptions=True
        )
        done = [each for each in did if isinstance(each, str)]
        if not done:
            raise next(each for each in did if isinstance(each, BaseException))
        return Struck(blow.number, fault, -1 if fault.everyone else chosen.index, ", ".join(done))

    async def _until(self, met: Callable[[JobSpec, JobStatus], bool], patience: float | None = None) -> bool:
        """Whether it came to that in time. Where the job is may be out of reach for a while."""
        deadline = time.monotonic() + (self._terms.patience if patience is None else patience)
        while time.monotonic() < deadline:
            with contextlib.suppress(Unavailable):
                if met(*await self._look()):
                    return True
            await asyncio.sleep(_INTERVAL)
        return False

    async def _look(self) -> tuple[JobSpec, JobStatus]:
        for _ in range(_TRIES):
            with contextlib.suppress(Unavailable):
                return self._read(await self._target.place.job(self._target.namespace, self._target.name))
            await asyncio.sleep(_INTERVAL)
        return self._read(await self._target.place.job(self._target.namespace, self._target.name))

    def _read(self, job: dict[str, Any]) -> tuple[JobSpec, JobStatus]:
        spec, problems = parse(self._target.name, job["spec"])
        if spec is None:
            raise Rejected(f"{self._target.name} is invalid: {problems[0].message}")
        return spec, JobStatus.model_validate(job.get("status") or {})
