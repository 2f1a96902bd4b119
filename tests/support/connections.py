"""The TCP connections of pods, read from the kernel's tables on a node: what really goes over the network."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

_ESTABLISHED, _LISTENING = "01", "0A"
# One block per network namespace: whoever lives in it sees the same table.
_SCRIPT = """
for process in /proc/[0-9]*; do
    space=$(readlink $process/ns/net) || continue
    case "$seen" in *"$space"*) continue;; esac
    seen="$seen $space"
    echo "netns $space"
    cat $process/net/tcp $process/net/tcp6 || true
done 2>/dev/null
"""


@dataclass(frozen=True, order=True)
class Connection:
    """Who called whom, by address, and on which port."""

    source: str
    destination: str
    port: int


def connections(run: Callable[[list[str]], str]) -> set[Connection]:
    """All connections of the node that `run` runs commands on, each seen from the side of the network namespace."""
    found: set[Connection] = set()
    for table in run(["sh", "-c", _SCRIPT]).split("netns ")[1:]:
        found |= parse(table)
    return found


def parse(table: str) -> set[Connection]:
    """The connections of one network namespace; a line of /proc/net/tcp is: number, local, remote, state, ..."""
    rows = [line.split() for line in table.splitlines()]
    sockets = [(row[1], row[2], row[3]) for row in rows if len(row) > 3 and row[0].rstrip(":").isdigit()]
    listening = {_end(local)[1] for local, _, state in sockets if state == _LISTENING}
    found = set()
    for local, remote, state in sockets:
        if state != _ESTABLISHED:
            continue
        (here, port), (there, their_port) = _end(local), _end(remote)
        if here == there:
            continue
        found.add(Connection(there, here, port) if port in listening else Connection(here, there, their_port))
    return found


def _end(text: str) -> tuple[str, int]:
    """Address and port of a table's entry: the address in 32-bit words of the machine's byte order, all in hex."""
    digits, _, port = text.partition(":")
    words = [bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, len(digits), 8)]
    address = ipaddress.ip_address(b"".join(words))
    plain = getattr(address, "ipv4_mapped", None) or address
    return str(plain), int(port, 16)
