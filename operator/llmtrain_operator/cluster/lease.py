"""Leadership by a Lease: at most one replica acts, and another takes over within seconds when it goes.

The holder acts for `RENEW_DEADLINE` after the last renewal that succeeded was *sent*; others wait for `DURATION` after
they saw the record change. So the old leader has stopped before the next one begins, whatever their clocks say, as
long as both run about equally fast. `remaining` is asked right before every write, so that a leader that stood still
(SIGSTOP, a suspended machine) writes nothing when it wakes up.

What a lease cannot do is recall a request that was on its way. Against that stands the job's status: every pass writes
it first, under the resourceVersion that it was decided from, and carries out nothing if that fails. **No round number
is issued twice**: a round is `status.rounds + 1`, and is told to agents only after that write. Of two leaders that
decide from the same status the API server accepts one; the other gets `Conflict`, reads what was written and goes on
from there. A leader that stood still between its write and telling agents tells the very round that is on record,
which its successor has read. Pods are named by incarnations that are on record too, and deleted by UID, so a late
creation or deletion is one that was decided on.

Not `kubernetes.aio.leaderelection`: its renewal has no deadline while a request hangs, it judges by the wall clock,
cannot create a Lease, and never releases one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from llmtrain_operator.clock import boot_time
from llmtrain_operator.cluster.client import Client, NotFound
from llmtrain_operator.cluster.resources import LEASES
from llmtrain_operator.contract import names
from llmtrain_operator.election import DURATION, RENEW_DEADLINE, RETRY, Record, Sighting, decide, sighted
from llmtrain_operator.ports import Conflict, Rejected, Unavailable

log = logging.getLogger(__name__)

_ATTEMPT: Final = 2.0
"""Seconds for a look and a write: after that the connection counts as dead, and a new one is tried."""
_STEP_DOWN: Final = 5.0
"""Seconds that the work of a term has to end after it was cancelled, before the Lease is given to another."""
_ABSTAIN: Final = 3 * RETRY
"""Seconds after an own end in which others may take the Lease."""
_MANAGER: Final = {"fieldManager": names.FIELD_MANAGER}


class Lease:
    """This replica's (`identity`, never used before) candidacy for the Lease `name` in `namespace`.

    `client` must be of its own: renewals cannot wait in line behind other requests.
    """

    def __init__(
        self, client: Client, namespace: str, name: str, identity: str, clock: Callable[[], float] = boot_time
    ) -> None:
        self._client, self._namespace, self._name, self._me, self._clock = client, namespace, name, identity, clock
        self._seen: Sighting | None = None
        self._object: Mapping[str, Any] = {}
        self._until = float("-inf")
        self._said = ""

    @property
    def until(self) -> float:
        """The time, on the given clock, up to which this replica certainly leads."""
        return self._until

    @property
    def remaining(self) -> float:
        """Seconds for which this replica certainly leads, 0 if it does not."""
        return max(0.0, self._until - self._clock())

    def held(self) -> bool:
        """Whether this replica may act at this moment."""
        return self.remaining > 0

    async def run(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Stand for election until cancelled; `lead()` runs while this replica leads and is cancelled when it does not.

        Cancelling, or an end of `lead()`, releases the Lease, so that another replica takes over within a second. After
        an end without an error others have that chance before this replica stands again. Raises what `lead()` raised.
        """
        while True:
            await self._acquire()
            term = asyncio.create_task(lead(), name="term")
            lost = ""
            try:
                lost = await self._keep(term)
            finally:
                self._until = float("-inf")
                term.cancel()
                await asyncio.wait([term], timeout=_STEP_DOWN)
                if not lost:
                    await self._release()
            if not term.done():
                raise RuntimeError(f"the work of a term that was cancelled goes on after {_STEP_DOWN:.0f} s")
            if not term.cancelled():
                term.result()
            log.warning("this replica does not lead any more: %s", lost or "its own choice")
            if not lost:
                await asyncio.sleep(_ABSTAIN)

    async def _acquire(self) -> None:
        while True:
            pause = RETRY
            try:
                async with asyncio.timeout(_ATTEMPT):
                    decision = decide(await self._look(), self._me, self._clock())
                    if decision.kind != "wait":
                        await self._write(self._me)
                        log.info("this replica, %s, leads: %s was %s", self._me, self._lease, decision.reason)
                        return
                pause = decision.pause
                self._say(logging.INFO, f"standing by: {decision.reason}")
            except Conflict:
                pause = 0.0  # somebody was quicker, or changed a label: look again
            except (Rejected, Unavailable, TimeoutError) as error:
                self._say(logging.WARNING, f"no use of {self._lease}: {str(error) or 'no answer'}")
            await asyncio.sleep(pause)

    async def _keep(self, term: asyncio.Task[None]) -> str:
        """Renew until that fails for too long or another holds it: returns why. Returns nothing if `term` ends."""
        trouble = ""
        while self.held():
            await asyncio.wait([term], timeout=min(RETRY, self.remaining))
            if term.done():
                return ""
            try:
                async with asyncio.timeout(min(_ATTEMPT, self.remaining)):
                    decision = decide(await self._look(), self._me, self._clock())
                    if decision.kind != "renew":
                        return f"the Lease is {decision.reason}"
                    if self.held():  # after a standstill it is too late, even if nobody took the Lease meanwhile
                        await self._write(self._me)
            except (Conflict, Rejected, Unavailable, TimeoutError) as error:
                trouble = f": {str(error) or 'no answer'}"
        return f"it could not renew {self._lease} for {RENEW_DEADLINE:.0f} s{trouble}"

    async def _release(self) -> None:
        try:
            async with asyncio.timeout(_ATTEMPT):
                if decide(await self._look(), self._me, self._clock()).kind == "renew":
                    await self._write("")
                    log.info("released %s", self._lease)
        except (Conflict, Rejected, Unavailable, TimeoutError) as error:
            log.warning("could not release %s: %s", self._lease, str(error) or "no answer")

    async def _look(self) -> Sighting:
        try:
            self._object = await self._client.request("get", LEASES, self._namespace, self._name)
        except NotFound:
            self._object = await self._create()
        self._seen = sighted(self._seen, record_of(self._object), self._clock())
        return self._seen

    async def _create(self) -> Mapping[str, Any]:
        metadata = {"name": self._name, "namespace": self._namespace}
        body = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata}
        try:
            return await self._client.request("create", LEASES, self._namespace, query=_MANAGER, body=body)
        except Rejected as error:
            raise Rejected(f"it is not there and may not be made from here; helm upgrade makes it: {error}") from error

    async def _write(self, holder: str) -> None:
        """Make `holder` the holder, if the Lease is still as it was seen."""
        sent = self._clock()
        before, stamp = record_of(self._object), datetime.now(UTC).isoformat(timespec="microseconds")
        spec: dict[str, Any] = {"holderIdentity": holder, "renewTime": stamp, "leaseDurationSeconds": int(DURATION)}
        if holder and holder != before.holder:
            spec |= {"acquireTime": stamp, "leaseTransitions": before.transitions + 1}
        body = {"metadata": {"resourceVersion": self._object["metadata"]["resourceVersion"]}, "spec": spec}
        await self._client.request("patch", LEASES, self._namespace, self._name, query=_MANAGER, body=body)
        self._until = sent + RENEW_DEADLINE if holder else float("-inf")

    @property
    def _lease(self) -> str:
        return f"Lease {self._namespace}/{self._name}"

    def _say(self, level: int, text: str) -> None:
        if text != self._said:
            self._said = text
            log.log(level, "%s", text)


def record_of(raw: Mapping[str, Any]) -> Record:
    """What a Lease object says; a fresh one says nothing."""
    spec: Mapping[str, Any] = raw.get("spec") or {}
    return Record(
        holder=spec.get("holderIdentity") or "",
        renewed=spec.get("renewTime") or "",
        transitions=spec.get("leaseTransitions") or 0,
        duration=float(spec.get("leaseDurationSeconds") or DURATION),
    )
