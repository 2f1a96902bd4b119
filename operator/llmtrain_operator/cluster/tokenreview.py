"""Agents' identities from their projected service-account tokens, by TokenReview.

A good answer is remembered for a few seconds by the token's hash, so that a coordinator restart with thousands of
agents, each dialling more than once, does not become as many requests. The price: a deleted pod's token works that
much longer.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from llmtrain_operator.cluster.client import Client, connect
from llmtrain_operator.cluster.resources import BY_KIND
from llmtrain_operator.contract import names
from llmtrain_operator.coordinator.auth import AuthenticationUnavailable, Identity, Unauthenticated
from llmtrain_operator.ports import Rejected, Unavailable

MEMORY: Final = 10.0
_USER_PREFIX: Final = "system:serviceaccount:"
_POD_NAME: Final = "authentication.kubernetes.io/pod-name"
_POD_UID: Final = "authentication.kubernetes.io/pod-uid"


class TokenReviewAuthenticator:
    """An `Authenticator` that asks the API server."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[bytes, tuple[float, Identity]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls) -> AsyncIterator[TokenReviewAuthenticator]:
        """One with a client of its own, for the pod's service account or the current kubeconfig."""
        async with connect() as client:
            yield cls(client)

    async def identify(self, token: str) -> Identity:
        """Raises `Unauthenticated`, `AuthenticationUnavailable`."""
        now = self._clock()
        self._known = {key: entry for key, entry in self._known.items() if entry[0] > now}
        digest = hashlib.sha256(token.encode()).digest()
        if entry := self._known.get(digest):
            return entry[1]
        identity = identity_of(await self._review(token))
        self._known[digest] = (now + MEMORY, identity)
        return identity

    async def _review(self, token: str) -> Mapping[str, Any]:
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [names.TOKEN_AUDIENCE]},
        }
        try:
            answer = await self._client.request("create", BY_KIND["TokenReview"], body=review)
        except (Unavailable, Rejected) as error:
            # A refusal is about our own right to ask (RBAC), not about the token: the agent should keep trying.
            raise AuthenticationUnavailable(f"cannot review tokens: {error}") from error
        status: Mapping[str, Any] = answer.get("status", {})
        return status


def identity_of(status: Mapping[str, Any]) -> Identity:
    """The pod that a TokenReview's status speaks of. Raises `Unauthenticated`."""
    if not status.get("authenticated"):
        raise Unauthenticated(f"the API server does not accept the token: {status.get('error') or 'no reason given'}")
    if names.TOKEN_AUDIENCE not in status.get("audiences", ()):
        raise Unauthenticated(f"the token is not for audience {names.TOKEN_AUDIENCE}")
    user: Mapping[str, Any] = status.get("user", {})
    username = str(user.get("username", ""))
    extra: Mapping[str, list[str]] = user.get("extra") or {}
    pod, uid = extra.get(_POD_NAME), extra.get(_POD_UID)
    if not username.startswith(_USER_PREFIX) or not pod or not uid:
        raise Unauthenticated(f"the token of {username or 'nobody'} is not bound to a pod")
    namespace = username.removeprefix(_USER_PREFIX).partition(":")[0]
    return Identity(namespace=namespace, pod=pod[0], uid=uid[0])
