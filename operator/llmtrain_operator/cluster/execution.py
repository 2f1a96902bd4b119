"""Running a command in a member's container, as `kubectl exec` does: over a WebSocket, without a terminal or input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from kubernetes.aio.client import Configuration
from kubernetes.aio.stream import WsApiClient

from llmtrain_operator.cluster.client import error_of
from llmtrain_operator.contract import names
from llmtrain_operator.ports import Rejected, Unavailable

_PROTOCOL: Final = "v4.channel.k8s.io"
_OUTPUT, _ERRORS, _STATUS = 1, 2, 3  # channels: the first byte of each message


@dataclass(frozen=True, slots=True)
class Executed:
    """How a command ended, and all that it printed."""

    code: int
    output: str
    errors: str


async def execute(configuration: Configuration, path: str, command: Sequence[str]) -> Executed:
    """Run it to its end in the trainer's container; `path` is that of the pod's `exec` subresource.

    Raises `Rejected` (no right to it, no such pod, nothing that could run it) and `Unavailable`.
    """
    query = [("container", names.CONTAINER), ("stdout", "true"), ("stderr", "true"), ("command", list(command))]
    headers = {"sec-websocket-protocol": _PROTOCOL, "User-Agent": names.FIELD_MANAGER}
    channels: dict[int, bytearray] = {_OUTPUT: bytearray(), _ERRORS: bytearray(), _STATUS: bytearray()}
    try:
        async with WsApiClient(configuration) as api:
            await api.update_params_for_auth(headers, [], ["BearerToken"], path, "GET", None)
            connecting = await api.request(
                "GET", configuration.host + path, query_params=query, headers=headers, _preload_content=False
            )
            async with connecting as link:
                async for message in link:
                    _sort_in(message, channels)
    except aiohttp.WSServerHandshakeError as error:
        raise error_of(error.status, f"exec {path}: {error.message}") from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Unavailable(f"exec {path}: {error or type(error).__name__}") from error
    code = _code(bytes(channels[_STATUS]), path)
    return Executed(code, *(channels[each].decode(errors="replace") for each in (_OUTPUT, _ERRORS)))


def _sort_in(message: Any, channels: dict[int, bytearray]) -> None:
    if message.type == aiohttp.WSMsgType.ERROR:
        raise Unavailable(f"the connection broke: {message.data}")
    data = message.data.encode() if isinstance(message.data, str) else bytes(message.data)
    if data and data[0] in channels:
        channels[data[0]] += data[1:]


def _code(status: bytes, path: str) -> int:
    """The exit code in the `Status` object that comes last."""
    try:
        said = json.loads(status)
    except ValueError as error:
        raise Unavailable(f"exec {path}: the connection ended before the command did") from error
    if said.get("status") == "Success":
        return 0
    for cause in (said.get("details") or {}).get("causes") or ():
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise Rejected(f"exec {path}: {said.get('message', 'no reason given')}")
