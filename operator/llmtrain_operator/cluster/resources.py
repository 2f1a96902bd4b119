"""The kinds of objects that the operator touches, and where the API server keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_operator.scheduling import GROUPS


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind: `api_version` as in manifests, `plural` as in URLs."""

    kind: str
    api_version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of an object, or of the collection if `name` is empty (all namespaces if that is too)."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        scope = f"namespaces/{namespace}" if self.namespaced and namespace else ""
        return "/".join(part for part in (root, scope, self.plural, name, subresource) if part)


JOBS: Final = Resource(names.KIND, names.API_VERSION, names.PLURAL)
PODS: Final = Resource("Pod", "v1", "pods")
NODES: Final = Resource("Node", "v1", "nodes", namespaced=False)
EVENTS: Final = Resource("Event", "v1", "events")
LEASES: Final = Resource("Lease", "coordination.k8s.io/v1", "leases")
_OTHERS: Final = (
    Resource("Service", "v1", "services"),
    Resource("ServiceAccount", "v1", "serviceaccounts"),
    Resource("ConfigMap", "v1", "configmaps"),
    Resource("PersistentVolumeClaim", "v1", "persistentvolumeclaims"),
    Resource("Namespace", "v1", "namespaces", namespaced=False),
    Resource("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets"),
    Resource("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
    Resource("TokenReview", "authentication.k8s.io/v1", "tokenreviews", namespaced=False),
)
BY_KIND: Final[Mapping[str, Resource]] = {r.kind: r for r in (JOBS, PODS, NODES, EVENTS, *_OTHERS)}
_POD_GROUPS: Final = {api.api_version: Resource("PodGroup", api.api_version, api.plural) for api in GROUPS.values()}


def resource_of(obj: Mapping[str, Any]) -> Resource:
    """The resource that a manifest is one of. Raises `KeyError` for a kind that the operator has no business with."""
    if obj["kind"] == "PodGroup":  # three schedulers call theirs that
        return _POD_GROUPS[obj["apiVersion"]]
    return BY_KIND[obj["kind"]]


def key_of(obj: Mapping[str, Any]) -> str:
    """`namespace/name`, or the name alone for cluster-scoped objects."""
    metadata = obj["metadata"]
    namespace = metadata.get("namespace")
    return f"{namespace}/{metadata['name']}" if namespace else str(metadata["name"])


def split_key(key: str) -> tuple[str, str]:
    """Namespace and name of a `namespace/name` key; the namespace is empty for cluster-scoped objects."""
    namespace, _, name = key.rpartition("/")
    return namespace, name


def job_behind(obj: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The reference to the job that controls `obj`, None if none does."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("kind") == names.KIND and owner.get("controller")), None)


def controller_of(obj: Mapping[str, Any]) -> str:
    """The UID of the controlling owner, empty if there is none."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")
