"""Finding the leader: of all replicas' coordinators only the leader's listens.

A URL's host may stand for one replica, for several (a headless Service), or for whichever a virtual address picks. All
its addresses are dialled at the same time, so that a replica on a dead node, which swallows the attempt, costs no time;
the first that accepts is the leader. Names are resolved anew in every round, because replicas come and go; where that
fails the addresses of the last time are used.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final
from urllib.parse import urlsplit

RESOLVE_TIMEOUT: Final = 3.0
CONNECT_TIMEOUT: Final = 1.5
"""Seconds for one address: enough for a packet to be lost and sent again."""

_Address = tuple[socket.AddressFamily, Any]


class Dialler:
    """Dials the hosts of `urls`, one URL after the other, each time beginning with another."""

    def __init__(self, urls: tuple[str, ...]) -> None:
        self._targets = [(parts.hostname or "", parts.port or 443) for parts in map(urlsplit, urls)]
        self._last: dict[str, tuple[_Address, ...]] = {}
        self.url = urls[0]
        self.secure = urlsplit(self.url).scheme == "wss"

    async def dial(self) -> socket.socket:
        """A connected socket. Raises `OSError`, saying what happened at each address, if nobody listens."""
        troubles: list[str] = []
        self._targets.append(self._targets.pop(0))
        for host, port in self._targets:
            try:
                addresses = await self._resolve(host, port)
            except OSError as error:
                troubles.append(f"{host}: {error}")
                continue
            if link := await _first(addresses, troubles):
                return link
        raise OSError("; ".join(dict.fromkeys(troubles)))

    async def _resolve(self, host: str, port: int) -> tuple[_Address, ...]:
        lookup = asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.wait_for(lookup, RESOLVE_TIMEOUT)
        except OSError:  # a TimeoutError is one
            if host not in self._last:
                raise
        else:
            self._last[host] = tuple((family, address) for family, _, _, _, address in found)
        return self._last[host]


async def _first(addresses: tuple[_Address, ...], troubles: list[str]) -> socket.socket | None:
    """The first connection that comes about; what became of the others is added to `troubles`."""
    attempts = {asyncio.create_task(_connect(*address)): address[1][0] for address in addresses}
    pending = set(attempts)
    links: list[socket.socket] = []
    try:
        while pending and not links:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                if error := attempt.exception():
                    troubles.append(f"{attempts[attempt]}: {str(error) or 'no answer'}")
                else:
                    links.append(attempt.result())
    finally:
        for attempt in pending:
            attempt.cancel()
        late = await asyncio.gather(*pending, return_exceptions=True)
        links += [link for link in late if isinstance(link, socket.socket)]
    for spare in links[1:]:
        spare.close()
    return links[0] if links else None


async def _connect(family: socket.AddressFamily, address: Any) -> socket.socket:
    link = socket.socket(family, socket.SOCK_STREAM)
    link.setblocking(False)
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(link, address), CONNECT_TIMEOUT)
    except BaseException:
        link.close()
        raise
    return link
