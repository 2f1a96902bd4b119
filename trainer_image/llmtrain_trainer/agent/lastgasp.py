"""The last gasp: what is in the members' memory goes to durable storage before the pods end.

For when the workers cannot do it any more. One member writes, by the operator's word; the others hand out their
snapshots until the checkpoint is there. All within the pod's grace period, and nothing of it is a reason to fail.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from llmtrain_operator.contract.wire import Directive, Round
from llmtrain_trainer.agent.environment import Environment
from llmtrain_trainer.agent.redaction import redactor

if TYPE_CHECKING:
    from llmtrain_trainer.checkpoint.catalog import Catalog

log = logging.getLogger(__name__)

_POLL: Final = 0.5
_MARGIN: Final = 2.0
"""Seconds of the grace period that are left for the agent's own end."""


def last_gasp(environment: Environment, directive: Directive | None, entered: Round | None) -> None:
    """Write, or wait for who writes, if the directive says so."""
    durable = (environment.spec.get("checkpoint") or {}).get("durable") or {}
    storage = durable.get("storage")
    if directive is None or not directive.persist or entered is None or environment.flash is None or not storage:
        return
    end = time.monotonic() + environment.grace - _MARGIN
    try:
        from llmtrain_trainer.checkpoint.catalog import Catalog
        from llmtrain_trainer.checkpoint.storage import open_storage

        catalog = Catalog(open_storage(storage))
        if directive.persist == environment.uid:
            _write(environment, catalog, entered)
        else:
            _wait(catalog, entered, directive.persist, end)
    except Exception as error:  # noqa: BLE001 - a pod that ends all the same
        log.warning("what is in memory could not be persisted: %s", redactor().text(str(error)))


def _write(environment: Environment, catalog: Catalog, entered: Round) -> None:
    from llmtrain_trainer.flash import planner
    from llmtrain_trainer.flash.persist import Claimant, Memory, persist_newest
    from llmtrain_trainer.flash.protocol import Pass, PeerGone
    from llmtrain_trainer.flash.store import Store
    from llmtrain_trainer.flash.survey import ask, survey

    assert environment.flash is not None
    by, mine = Pass(entered.number, entered.key), entered.rank_of(environment.uid) or 0
    store = Store(environment.flash, environment.job_uid)
    inventories = [survey(store, mine)]
    for rank, member in enumerate(entered.members):
        if rank == mine or not member.flash_port:
            continue
        try:
            inventories.append(ask(f"{member.host}:{member.flash_port}", by, rank))
        except PeerGone as gone:
            log.info("member %s hands out nothing any more: %s", rank, gone)
    claimant = Claimant(environment.job_uid, entered.number)
    allowed = planner.allowed(inventories, entered.avoid)
    outcome = persist_newest(Memory({mine: store}, by), catalog, allowed, claimant)
    if outcome.committed and outcome.edition:
        log.info("step %s went from memory to durable storage in %.1f s", outcome.edition.step, outcome.seconds)
    else:
        log.warning("nothing went from memory to durable storage: %s", redactor().text(outcome.message))


def _wait(catalog: Catalog, entered: Round, writer: str, end: float) -> None:
    """Until a checkpoint appears that was not there before, or who writes has ended: there was nothing to write."""
    from llmtrain_trainer.flash.protocol import Pass, PeerGone
    from llmtrain_trainer.flash.survey import ask

    rank = entered.rank_of(writer)
    if rank is None:
        return
    address = f"{entered.members[rank].host}:{entered.members[rank].flash_port}"
    before, _ = catalog.newest_valid()
    while time.monotonic() < end:
        found, _ = catalog.newest_valid()
        if found is not None and (before is None or found.step > before.step):
            return
        try:
            ask(address, Pass(entered.number, entered.key), rank)
        except PeerGone:
            return
        time.sleep(_POLL)
