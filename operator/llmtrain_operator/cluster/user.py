"""The cluster as a person at a terminal sees it: jobs, their pods, events and logs, with that person's own rights."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes.aio import config as kube_config

from llmtrain_operator.cluster.client import Client, connect
from llmtrain_operator.cluster.evidence import Evidence
from llmtrain_operator.cluster.execution import Executed, execute
from llmtrain_operator.cluster.projections import pod_view
from llmtrain_operator.cluster.resources import EVENTS, JOBS, PODS
from llmtrain_operator.contract import names
from llmtrain_operator.state import PodView

_ACCOUNT_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class UserCluster:
    """Requests of the CLI. Raises what `Client` raises."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.evidence = Evidence(client)

    async def job(self, namespace: str, name: str) -> dict[str, Any]:
        """One job object."""
        return await self._client.request("get", JOBS, namespace, name)

    async def jobs(self, namespace: str) -> list[dict[str, Any]]:
        """The job objects of a namespace, of all namespaces if it is empty."""
        answer = await self._client.request("list", JOBS, namespace)
        return list(answer["items"])

    async def pods(self, namespace: str, job: str) -> list[PodView]:
        """The member pods of a job in order of index and incarnation, ended ones included."""
        query = {"labelSelector": f"{names.LABEL_JOB}={job}"}
        answer = await self._client.request("list", PODS, namespace, query=query)
        views = (pod_view(raw) for raw in answer["items"])
        return sorted((view for view in views if view), key=lambda pod: (pod.index, pod.incarnation))

    async def events(self, namespace: str, uid: str) -> list[dict[str, Any]]:
        """The events about one object, in no particular order."""
        answer = await self._client.request(
            "list", EVENTS, namespace, query={"fieldSelector": f"involvedObject.uid={uid}"}
        )
        return list(answer["items"])

    async def pod_events(self, namespace: str, uids: Collection[str]) -> list[dict[str, Any]]:
        """The events about the pods with these UIDs, in no particular order."""
        answer = await self._client.request(
            "list", EVENTS, namespace, query={"fieldSelector": "involvedObject.kind=Pod"}
        )
        return [event for event in answer["items"] if event["involvedObject"].get("uid") in uids]

    async def patch(self, namespace: str, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Apply a JSON merge patch to a job."""
        return await self._client.request("patch", JOBS, namespace, name, body=body)

    async def scale(self, namespace: str, name: str, members: int) -> None:
        """Want so many members, through the scale subresource: a right of its own."""
        body = {"spec": {"replicas": members}}
        await self._client.request("patch", JOBS, namespace, name, subresource="scale", body=body)

    async def create_pod(self, pod: Mapping[str, Any]) -> None:
        """Create a pod."""
        await self._client.request("create", PODS, pod["metadata"]["namespace"], body=pod)

    async def pod(self, namespace: str, name: str) -> dict[str, Any]:
        """A pod, whole."""
        return await self._client.request("get", PODS, namespace, name)

    async def delete_pod(self, namespace: str, name: str) -> None:
        """Delete a pod without waiting for it."""
        await self._client.request("delete", PODS, namespace, name)

    async def kill_pod(self, namespace: str, name: str, uid: str) -> None:
        """End a pod at once, if it is still the one with this UID."""
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
        await self._client.request("delete", PODS, namespace, name, body=body)

    async def log(
        self, namespace: str, pod: str, *, follow: bool, tail: int | None = None, since: str | None = None
    ) -> AsyncGenerator[tuple[str, str], None]:
        """(time, line) pairs of the member's log: the last `tail` lines, or those from the time `since` on, or all.

        With `follow` it goes on until the container ends.
        """
        query: dict[str, str | int] = {"container": names.CONTAINER, "timestamps": "true"}
        query |= {"follow": "true"} if follow else {}
        query |= {"tailLines": tail} if tail is not None else {}
        query |= {"sinceTime": since} if since else {}
        async with contextlib.aclosing(self._client.log(PODS, namespace, pod, query=query)) as lines:
            async for line in lines:
                when, _, text = line.decode(errors="replace").partition(" ")
                yield when, text

    async def execute(self, namespace: str, pod: str, command: Sequence[str]) -> Executed:
        """Run a command in a member's container to its end; needs the right to `pods/exec`."""
        # A connection of its own, to the same server by the same login.
        return await execute(self._client._api.configuration, PODS.path(namespace, pod, "exec"), command)


@contextlib.asynccontextmanager
async def open_cluster(kubeconfig: Path | None, context: str | None) -> AsyncIterator[UserCluster]:
    """The cluster that kubectl would talk to. Raises `Unavailable` if there is no access to any."""
    async with connect(kubeconfig, context=context) as client:
        yield UserCluster(client)


def default_namespace(kubeconfig: Path | None, context: str | None) -> str:
    """The namespace that kubectl would use: the context's, the pod's own inside a cluster, else `default`."""
    if kubeconfig is None and context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        return _ACCOUNT_NAMESPACE.read_text().strip() if _ACCOUNT_NAMESPACE.exists() else "default"
    try:
        contexts, active = kube_config.list_kube_config_contexts(str(kubeconfig) if kubeconfig else None)
    except (kube_config.ConfigException, OSError, TypeError, yaml.YAMLError):
        return "default"  # connecting will say what is wrong
    chosen = next((each for each in contexts if each["name"] == context), active) if context else active
    return str(chosen["context"].get("namespace") or "default")
