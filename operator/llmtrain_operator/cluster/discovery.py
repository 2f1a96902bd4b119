"""Which of the optional APIs the server serves, asked anew now and then: schedulers come and go as clusters are run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Final

from llmtrain_operator.cluster.client import Client, NotFound
from llmtrain_operator.cluster.resources import Resource
from llmtrain_operator.ports import Rejected, Unavailable
from llmtrain_operator.scheduling import Api

log = logging.getLogger(__name__)

_INTERVAL: Final = 10.0
_RETRY: Final = 1.0


class Discovery:
    """Knows which of `apis` are served, once `synced` is set; `on_change` is called when that changes afterwards."""

    def __init__(self, client: Client, apis: Collection[Api], on_change: Callable[[], None]) -> None:
        self.synced = asyncio.Event()
        self._client, self._apis, self._on_change = client, apis, on_change
        self._served: frozenset[Api] = frozenset()

    def serves(self, api: Api) -> bool:
        """Whether the server had `api` when it was last asked."""
        return api in self._served

    async def run(self) -> None:
        """Ask, and ask again, until cancelled."""
        while True:
            try:
                served = frozenset([api for api in self._apis if await self._ask(api)])
            except Unavailable as error:
                log.info("asking for optional APIs: %s", error)
                await asyncio.sleep(_RETRY)
                continue
            changed, self._served = served != self._served, served
            if changed and self.synced.is_set():
                log.info("optional APIs: %s", ", ".join(f"{a.plural}.{a.api_version}" for a in served) or "none")
                self._on_change()
            self.synced.set()
            await asyncio.sleep(_INTERVAL)

    async def _ask(self, api: Api) -> bool:
        """Whether `api` is in the list of its version's resources."""
        try:
            answer = await self._client.request("get", Resource("APIResourceList", api.api_version, ""))
        except NotFound:
            return False
        except Rejected as error:  # discovery is open to every account, unless someone has closed it
            log.warning("may not see whether the cluster has %s: %s", api.api_version, error)
            return False
        return any(each.get("name") == api.plural for each in answer.get("resources") or ())
