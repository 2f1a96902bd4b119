"""Who an agent is, by its token rather than by its words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from llmtrain_operator.contract.wire import Report


@dataclass(frozen=True, slots=True)
class Identity:
    """The pod that a token was issued to."""

    namespace: str
    pod: str
    uid: str


class Unauthenticated(Exception):  # noqa: N818 - says what happened, like the ports' errors
    """The token proves nothing: refuse the connection with 401 and this text."""


class AuthenticationUnavailable(Exception):  # noqa: N818 - says what happened, as above
    """Nobody could say whether the token is good: refuse with 503, the agent tries again."""


class Authenticator(Protocol):
    """Turns a bearer token into an identity."""

    async def identify(self, token: str) -> Identity:
        """Raises `Unauthenticated`, `AuthenticationUnavailable`."""


def bearer(header: str | None) -> str:
    """The token in an Authorization header. Raises `Unauthenticated`."""
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("send the pod's projected token as 'Authorization: Bearer <token>'")
    return token.strip()


def contradiction(identity: Identity, report: Report) -> str | None:
    """Why `report` cannot come from `identity`, None if it can: a pod may speak for itself only."""
    if report.uid != identity.uid:
        return f"the report is for pod UID {report.uid}, the token for {identity.uid}"
    if report.pod != identity.pod:
        return f"the report is for pod {report.pod}, the token for {identity.pod}"
    namespace = report.job.partition("/")[0]
    if namespace != identity.namespace:
        return f"the report is for a job in namespace {namespace}, the token for {identity.namespace}"
    return None
