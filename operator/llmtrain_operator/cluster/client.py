"""The connection to the API server: raw JSON requests over the official client's transport and authentication.

Every request is counted and, watches apart, goes through a token bucket, so that no bug of ours floods the server.
Answers are plain dictionaries: building typed models costs three times the time and memory and gives nothing here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
import yaml
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration

from llmtrain_operator.cluster.resources import Resource
from llmtrain_operator.contract import names
from llmtrain_operator.ports import Conflict, Rejected, Unavailable

_HTTP: Final = {
    "get": ("GET", "application/json"),
    "list": ("GET", "application/json"),
    "watch": ("GET", "application/json"),
    "create": ("POST", "application/json"),
    "patch": ("PATCH", "application/merge-patch+json"),
    "apply": ("PATCH", "application/apply-patch+yaml"),
    "delete": ("DELETE", "application/json"),
}
_READS: Final = frozenset({"get", "list", "watch"})
_REQUEST_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, sock_connect=5)
# A silent watch still carries a bookmark about once a minute; twice that without a byte is a dead connection.
_WATCH_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=130)

CallObserver = Callable[[str, str, str], None]
"""Told of each finished request: verb, resource (plural) and HTTP code, `0` when there was no answer."""


ThrottleObserver = Callable[[float], None]
"""Told of each request that the token bucket held back, and for how many seconds."""


def _unobserved(verb: str, resource: str, code: str) -> None:
    del verb, resource, code


def _unheeded(seconds: float) -> None:
    del seconds


def _always() -> bool:
    return True


class NotFound(Rejected):
    """The object does not exist: deleted, or never made."""


class Gone(Rejected):
    """The server no longer has that resource version: list anew."""


class TokenBucket:
    """At most `rate` acquisitions per second in the long run, `burst` at once. First come, first served."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._then = burst, clock()

    def reserve(self) -> float:
        """Take a token, perhaps one of the future; returns the seconds to wait until it is valid."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate) - 1
        self._then = now
        return max(0.0, -self._tokens / self._rate)

    async def acquire(self) -> float:
        """Wait for a token; returns how many seconds that took."""
        delay = self.reserve()
        if delay > 0:
            await asyncio.sleep(delay)
        return delay


class Client:
    """Requests by verb and resource. Raises only `Conflict`, `Rejected` (`NotFound`, `Gone`) and `Unavailable`.

    `may_write` is asked at the last moment before each write; if it says no, the write is `Unavailable`.
    """

    def __init__(
        self,
        api: ApiClient,
        *,
        rate: float = 200.0,
        burst: float = 400.0,
        on_call: CallObserver | None = None,
        may_write: Callable[[], bool] = _always,
        on_throttle: ThrottleObserver = _unheeded,
    ) -> None:
        self._api = api
        self._bucket = TokenBucket(rate, burst)
        self._on_call = on_call or _unobserved
        self._may_write = may_write
        self._on_throttle = on_throttle

    async def request(
        self,
        verb: str,
        resource: Resource,
        namespace: str = "",
        name: str = "",
        *,
        subresource: str = "",
        query: Mapping[str, str | int] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """One request and its decoded answer. `verb` is an RBAC verb, or `apply` for server-side apply."""
        if (held_back := await self._bucket.acquire()) > 0:
            self._on_throttle(held_back)
        path = resource.path(namespace, name, subresource)
        async with self._exchange(verb, resource, path, query, body) as response:
            answer: dict[str, Any] = json.loads(await response.read())
            return answer

    async def watch(
        self, resource: Resource, namespace: str = "", *, query: Mapping[str, str | int]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events of one watch request until the server ends it."""
        query = {**query, "watch": "true"}
        path = resource.path(namespace)
        async with self._exchange("watch", resource, path, query, None) as response:
            async for line in _lines(response):
                yield json.loads(line)

    async def log(
        self, resource: Resource, namespace: str, name: str, *, query: Mapping[str, str | int]
    ) -> AsyncGenerator[bytes, None]:
        """The lines of the log subresource, as they come."""
        path = resource.path(namespace, name, "log")
        async with self._exchange("watch", resource, path, query, None) as response:
            async for line in _lines(response):
                yield line

    @contextlib.asynccontextmanager
    async def _exchange(
        self,
        verb: str,
        resource: Resource,
        path: str,
        query: Mapping[str, str | int] | None,
        body: Mapping[str, Any] | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            response = await self._send(verb, path, query, body)
            self._on_call(verb, resource.plural or resource.kind, str(response.status))
            try:
                if response.status >= 400:
                    raise error_of(response.status, _message_in(await response.read()))
                yield response
            finally:
                response.close() if verb == "watch" else response.release()
        except (aiohttp.ClientError, OSError, TimeoutError, json.JSONDecodeError) as error:
            self._on_call(verb, resource.plural or resource.kind, "0")
            raise Unavailable(f"{verb} {path}: {error or type(error).__name__}") from error

    async def _send(
        self, verb: str, path: str, query: Mapping[str, str | int] | None, body: Mapping[str, Any] | None
    ) -> aiohttp.ClientResponse:
        method, content_type = _HTTP[verb]
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": names.FIELD_MANAGER}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, None)
        timeout = _WATCH_TIMEOUT if verb == "watch" else _REQUEST_TIMEOUT
        url = self._api.configuration.host + path + ("?" + urlencode(query) if query else "")
        if verb not in _READS and not self._may_write():
            raise Unavailable(f"{verb} {path}: this replica does not lead")
        answer = await self._api.rest_client.request(method, url, headers=headers, body=body, _request_timeout=timeout)
        response: aiohttp.ClientResponse = answer.response
        return response


async def _lines(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    # StreamReader.readline refuses lines beyond its buffer, and an object may be larger than that.
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest


def error_of(code: int, message: str) -> Exception:
    """The exception for an HTTP error, with the server's own words."""
    text = f"{message} (HTTP {code})"
    if code == 401 or code == 429 or code >= 500:
        return Unavailable(text)
    kinds: Mapping[int, type[Exception]] = {404: NotFound, 409: Conflict, 410: Gone}
    return kinds.get(code, Rejected)(text)


def _message_in(body: bytes) -> str:
    """The message of a `Status` object, or the raw text where something else than the API server answered."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:500]


@contextlib.asynccontextmanager
async def connect(
    kubeconfig: Path | None = None,
    *,
    context: str | None = None,
    on_call: CallObserver | None = None,
    may_write: Callable[[], bool] = _always,
    on_throttle: ThrottleObserver = _unheeded,
) -> AsyncIterator[Client]:
    """A client for `kubeconfig`, else for the pod's service account, else for $KUBECONFIG or ~/.kube/config.

    Raises `Unavailable` if none of them is there, saying what was looked for.
    """
    configuration = Configuration()
    try:
        if kubeconfig is None and context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            kube_config.load_incluster_config(client_configuration=configuration)
        else:
            await kube_config.load_kube_config(
                config_file=str(kubeconfig) if kubeconfig else None,
                context=context,
                client_configuration=configuration,
                persist_config=False,
            )
    except (kube_config.ConfigException, OSError, TypeError, yaml.YAMLError) as error:  # a file that is something else
        place = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
        raise Unavailable(f"no access to a cluster: neither a pod's service account nor {place}: {error}") from error
    async with ApiClient(configuration) as api:
        yield Client(api, on_call=on_call, may_write=may_write, on_throttle=on_throttle)
