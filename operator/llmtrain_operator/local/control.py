"""The socket through which a run takes orders: a merge patch of the job in, the patched job or a refusal out.

One JSON line each way. Only what may change while members train is taken: suspend, nodes.desired, nodes.min,
nodes.max, annotations. Who may open the socket may give orders; the folder that it is in is its user's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from llmtrain_operator.local.folder import RunFolder, ShortPath
from llmtrain_operator.ports import Rejected

_LIMIT: Final = 2**20
_CHANGEABLE: Final = frozenset({"suspend", "nodes"})
_CHANGEABLE_NODES: Final = frozenset({"min", "max", "desired"})

Patch = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Applies a merge patch to the job and returns the new one. Raises `Rejected`."""


@contextlib.asynccontextmanager
async def serving(folder: RunFolder, patch: Patch) -> AsyncIterator[None]:
    """Take orders until the context ends."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, ValueError):
            try:
                reply: dict[str, Any] = {"job": patch(checked(json.loads(await reader.readline())))}
            except (Rejected, json.JSONDecodeError) as error:
                reply = {"refusal": str(error)}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()

    folder.control.unlink(missing_ok=True)  # left by a run that was killed
    with ShortPath(folder.control) as path:
        server = await asyncio.start_unix_server(answer, path, limit=_LIMIT)
    async with server:
        yield
    folder.control.unlink(missing_ok=True)


def checked(order: Any) -> Mapping[str, Any]:
    """The order, if it changes nothing but what may change. Raises `Rejected`."""
    spec = order.get("spec") or {} if isinstance(order, Mapping) else None
    if not isinstance(spec, Mapping) or not spec.keys() <= _CHANGEABLE:
        raise Rejected(f"of a local run only {', '.join(sorted(_CHANGEABLE))} can change: edit the file, run it again")
    nodes = spec.get("nodes") or {}
    if not isinstance(nodes, Mapping) or not nodes.keys() <= _CHANGEABLE_NODES:
        raise Rejected(f"of nodes only {', '.join(sorted(_CHANGEABLE_NODES))} can change: edit the file, run it again")
    annotations = (order.get("metadata") or {}).get("annotations") or {}
    return {"metadata": {"annotations": annotations}, "spec": spec}


async def is_running(folder: RunFolder) -> bool:
    """Whether a process trains this job now."""
    try:
        _, writer = await _connect(folder)
    except OSError:
        return False
    writer.close()
    return True


async def order(folder: RunFolder, patch: Mapping[str, Any]) -> dict[str, Any]:
    """Have the run apply a merge patch; the new job. Raises `Rejected`, also if nobody trains it."""
    try:
        reader, writer = await _connect(folder)
        with contextlib.closing(writer):
            writer.write(json.dumps(patch).encode() + b"\n")
            answer = json.loads(await reader.readline())
    except (OSError, ValueError) as error:
        raise Rejected(
            f"{folder.path.name} is not being trained: `llmtrain local` with its file takes it up again"
        ) from error
    if "refusal" in answer:
        raise Rejected(answer["refusal"])
    job: dict[str, Any] = answer["job"]
    return job


async def _connect(folder: RunFolder) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    with ShortPath(folder.control) as path:
        return await asyncio.open_unix_connection(path, limit=_LIMIT)
