"""What a support bundle is made of, read with the user's own rights. Secrets are never read.

Every method raises `Rejected` (no right to it, no such thing) or `Unavailable`.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from llmtrain_operator.cluster.client import Client
from llmtrain_operator.cluster.resources import BY_KIND, JOBS, NODES, PODS, Resource
from llmtrain_operator.contract import names

DEPLOYMENTS: Final = Resource("Deployment", "apps/v1", "deployments")
_CRDS: Final = Resource("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions", False)
_OPERATOR: Final = f"{names.LABEL_NAME}=llmtrain,{names.LABEL_COMPONENT}=operator"


class Evidence:
    """Objects as the API server has them, and logs as bytes."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def pods(self, namespace: str, job: str) -> list[dict[str, Any]]:
        """The job's pods, whole."""
        return await self._list(PODS, namespace, f"{names.LABEL_JOB}={job}")

    async def claims(self, namespace: str) -> list[dict[str, Any]]:
        """The persistent volume claims of the namespace."""
        return await self._list(BY_KIND["PersistentVolumeClaim"], namespace)

    async def nodes(self) -> list[dict[str, Any]]:
        """All nodes, whole."""
        return await self._list(NODES)

    async def deployments(self, namespace: str = "") -> list[dict[str, Any]]:
        """The operator's deployments, in all namespaces unless one is named."""
        return await self._list(DEPLOYMENTS, namespace, _OPERATOR)

    async def operator_pods(self, namespace: str) -> list[dict[str, Any]]:
        """The operator's pods."""
        return await self._list(PODS, namespace, _OPERATOR)

    async def crd(self) -> dict[str, Any]:
        """The CustomResourceDefinition."""
        return await self._client.request("get", _CRDS, name=f"{JOBS.plural}.{names.GROUP}")

    async def log(self, namespace: str, pod: str, container: str, *, tail: int, previous: bool = False) -> bytes:
        """The last `tail` lines of a container, or of the one before it under the same name."""
        query: dict[str, str | int] = {"container": container, "timestamps": "true", "tailLines": tail}
        query |= {"previous": "true"} if previous else {}
        async with contextlib.aclosing(self._client.log(PODS, namespace, pod, query=query)) as lines:
            return b"".join([line + b"\n" async for line in lines])

    async def _list(self, resource: Resource, namespace: str = "", selector: str = "") -> list[dict[str, Any]]:
        query = {"labelSelector": selector} if selector else None
        answer = await self._client.request("list", resource, namespace, query=query)
        # Lists leave out what kind their items are.
        return [{"apiVersion": resource.api_version, "kind": resource.kind, **item} for item in answer["items"]]
