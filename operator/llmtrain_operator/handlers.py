"""kopf's part: it logs in, watches the job objects and ends the process when it cannot go on.

The only importer of kopf. Its events do nothing but wake the queue, and only those that say more than a new status,
which is our own doing: every pass reads the job from our own mirror, because kopf drops handler errors and never
reports a deletion that happened while its watch was down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kopf

from llmtrain_operator.contract import names


def registry(wake: Callable[[str], None]) -> kopf.OperatorRegistry:
    """The handlers: on any event of a job, `wake` is called with `namespace/name`."""
    handlers = kopf.OperatorRegistry()
    known: dict[str, object] = {}

    @kopf.on.login(registry=handlers)
    async def login(**details: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**details) or kopf.login_with_kubeconfig(**details)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=handlers)
    async def changed(type: str | None, namespace: str | None, name: str | None, meta: kopf.Meta, **_: Any) -> None:  # noqa: A002 - kopf's name
        key, now = f"{namespace}/{name}", substance(meta)
        if type == "DELETED":
            known.pop(key, None)
        elif known.get(key) == now:
            return
        else:
            known[key] = now
        wake(key)

    return handlers


def substance(metadata: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells two versions of a job apart, but for their statuses: specs have generations."""
    fields = ("uid", "generation", "labels", "annotations", "finalizers", "deletionTimestamp")
    return tuple(metadata.get(field) for field in fields)


def settings() -> kopf.OperatorSettings:
    """No events, no scans for new resources or namespaces, no peering: those need rights or writes of their own."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.scanning.disabled = True
    chosen.peering.standalone = True
    return chosen


async def run(wake: Callable[[str], None], namespaces: Sequence[str], obey_signals: Callable[[], None]) -> None:
    """Watch jobs in `namespaces` (all if empty) until cancelled. Returns, or raises why, when kopf gives up.

    `obey_signals` installs this process's signal handlers: kopf puts its own in their place, and would on a signal wait
    5 s for every task of the process to end by itself.
    """
    before = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=registry(wake),
        settings=settings(),
        clusterwide=not namespaces,
        namespaces=list(namespaces),
        standalone=True,
    )
    obey_signals()
    await kopf.run_tasks(tasks, ignored=before)
