"""What an installation grants to the jobs of each namespace, and what they get if they say nothing.

Pure. A job over a limit is invalid, with the limit, the value and whom to ask in the words. This guards against
mistakes and careless use; a script of the user's own may write wherever its credentials and the network let it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from llmtrain_operator import places
from llmtrain_operator.api import JobSpec
from llmtrain_operator.api.problem import Problem
from llmtrain_operator.api.record import Record
from llmtrain_operator.api.scheduling import Name
from llmtrain_operator.api.types import Count, CountOrZero

Prefix = Annotated[str, Field(pattern=r"^(s3|pvc|file)://.*$", max_length=1024)]
Endpoint = Annotated[str, Field(pattern=r"^https?://[^/?#@]+/?$", max_length=1024)]


class Defaults(Record):
    """What a job gets whose spec does not say otherwise."""

    queue: Name | None = None
    """spec.scheduling.queue."""
    priority_class_name: Name | None = None
    """spec.scheduling.priorityClassName."""
    ttl_seconds_after_finished: CountOrZero | None = None
    """spec.ttlSecondsAfterFinished."""


class Grant(Record):
    """What the jobs of a namespace may have. None: no limit."""

    max_nodes: Count | None = None
    """Most pods of a job: spec.nodes.max and spec.nodes.spares."""
    storage: Annotated[tuple[Prefix, ...], Field(max_length=256)] | None = None
    """Where checkpoints and models may be kept and restored from: URIs, each good for everything below it."""
    s3_endpoints: Annotated[tuple[Endpoint, ...], Field(max_length=64)] | None = None
    """Which S3 servers may be named; Amazon's need not be."""
    defaults: Defaults = Defaults()
    """What the spec need not say."""


class Policy(Record):
    """The installation's grants. A namespace that is named inherits what it does not say itself."""

    contact: Annotated[str, Field(max_length=256)] = ""
    """Whom to ask for more."""
    default: Grant = Grant()
    """For namespaces that are not named."""
    namespaces: dict[str, Grant] = Field(default_factory=dict)
    """By namespace."""

    def grant(self, namespace: str) -> Grant:
        """What holds in this namespace."""
        own = self.namespaces.get(namespace)
        if own is None:
            return self.default
        said = own.model_dump(exclude_unset=True)
        defaults = {**self.default.defaults.model_dump(exclude_unset=True), **said.pop("defaults", {})}
        return Grant.model_validate({**self.default.model_dump(exclude={"defaults"}), **said, "defaults": defaults})


UNLIMITED: Final = Policy()
"""Where nothing is said."""


def read(text: str) -> Policy:
    """The policy in this JSON. Raises ValueError that names the field."""
    try:
        return Policy.model_validate_json(text)
    except ValidationError as error:
        said = (f"policy.{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ValueError("; ".join(said)) from error


def with_defaults(grant: Grant, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The spec as it was written, with what it leaves open filled in."""
    defaults, filled = grant.defaults, dict(raw)
    template = raw.get("template")
    pod = template.get("spec") if isinstance(template, Mapping) else None
    scheduling = {
        "queue": defaults.queue,
        "priorityClassName": None
        if isinstance(pod, Mapping) and "priorityClassName" in pod
        else defaults.priority_class_name,
    }
    given = {key: value for key, value in scheduling.items() if value is not None}
    own = raw.get("scheduling") or {}
    if given and isinstance(own, Mapping):
        filled["scheduling"] = {**given, **own}
    if defaults.ttl_seconds_after_finished is not None:
        filled.setdefault("ttlSecondsAfterFinished", defaults.ttl_seconds_after_finished)
    return filled


def problems(policy: Policy, namespace: str, spec: JobSpec) -> tuple[Problem, ...]:
    """Everything in which the job is over what its namespace is granted."""
    grant = policy.grant(namespace)
    found = (*_size(grant, spec), *_storage(grant, spec), *_servers(grant, spec))
    ask = f"or ask {policy.contact or 'those who run this installation'} for more"
    return tuple(
        Problem(path, value, f"limit {limit} of namespace {namespace}: {text}", f"{remedy}, {ask}")
        for path, value, limit, text, remedy in found
    )


_Excess = Iterator[tuple[str, Any, str, str, str]]
"""Path, value, the limit's name, what it says and the remedy."""


def _size(grant: Grant, spec: JobSpec) -> _Excess:
    nodes = spec.nodes
    if grant.max_nodes is not None and nodes.maximum + nodes.spares > grant.max_nodes:
        path = "spec.nodes.min" if nodes.max is None else "spec.nodes.max"
        path = "spec.nodes.spares" if nodes.maximum <= grant.max_nodes else path
        yield path, nodes.maximum + nodes.spares, "maxNodes", f"at most {grant.max_nodes} nodes per job", "Take fewer"


def _storage(grant: Grant, spec: JobSpec) -> _Excess:
    if grant.storage is None:
        return
    kept = places.checkpoints(spec) | ({"output": spec.output} if spec.output else {})
    for field, place in kept.items():
        if not any(_below(place, prefix) for prefix in grant.storage):
            allowed = ", ".join(grant.storage) or "nowhere"
            yield (
                f"spec.{field}",
                place,
                "storage",
                f"checkpoints and models only below {allowed}",
                "Choose one of them",
            )


def _below(place: str, prefix: str) -> bool:
    uri = place if "://" in place else f"file://{place}"
    root = prefix.rstrip("/")
    # `file:///` without its slashes is the whole file system.
    return uri == root or uri.startswith(f"{root}/" if not root.endswith(":") else prefix)


def _servers(grant: Grant, spec: JobSpec) -> _Excess:
    s3 = spec.checkpoint.s3 if spec.checkpoint else None
    if grant.s3_endpoints is None or s3 is None or s3.endpoint is None:
        return
    if s3.endpoint.rstrip("/") not in {each.rstrip("/") for each in grant.s3_endpoints}:
        allowed = ", ".join(grant.s3_endpoints) or "none but Amazon's"
        yield "spec.checkpoint.s3.endpoint", s3.endpoint, "s3Endpoints", f"only {allowed}", "Choose one of them"
