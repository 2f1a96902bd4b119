"""Everything that is shown about one job, as a frozen record made from what the API server says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from llmtrain_operator.api import JobStatus
from llmtrain_operator.state import PodView


@dataclass(frozen=True, slots=True)
class Happening:
    """An event. `time` is in seconds since 1970; `about` names the pod, empty if it is about the job."""

    time: float
    warning: bool
    reason: str
    message: str
    count: int
    about: str = ""


@dataclass(frozen=True, slots=True)
class JobReport:
    """One job at one moment. `created` is in seconds since 1970; `max_steps` is 0 for scripts that report no steps."""

    namespace: str
    name: str
    created: float
    suspended: bool
    max_steps: int
    status: JobStatus
    pods: tuple[PodView, ...] = ()
    events: tuple[Happening, ...] = ()

    @property
    def state(self) -> str:
        """The state in one word; `Unseen` until the operator has looked at the job."""
        return self.status.state if self.status.observed_generation else "Unseen"

    @property
    def step(self) -> int:
        """Optimizer steps done in the current round."""
        return self.status.progress.step if self.status.progress else 0

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status.completion_time is not None


def report(job: Mapping[str, Any], pods: Iterable[PodView] = (), events: Iterable[Mapping[str, Any]] = ()) -> JobReport:
    """The report of a job object. Raises ValueError if this version cannot read its status."""
    metadata, spec = job["metadata"], job.get("spec", {})
    try:
        status = JobStatus.model_validate(job.get("status") or {})
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise ValueError(
            f"status.{where} of {metadata['name']} is {fault['input']!r}, which this version of llmtrain does not "
            "know: update it to the operator's version"
        ) from error
    return JobReport(
        namespace=metadata["namespace"],
        name=metadata["name"],
        created=seconds(metadata["creationTimestamp"]),
        suspended=bool(spec.get("suspend")),
        max_steps=(status.progress.max_steps if status.progress else 0) or spec.get("training", {}).get("maxSteps", 0),
        status=status,
        pods=tuple(pods),
        events=in_order(events),
    )


def in_order(events: Iterable[Mapping[str, Any]]) -> tuple[Happening, ...]:
    """Event objects, the newest last."""
    return tuple(sorted(map(_happening, events), key=lambda each: each.time))


def _happening(event: Mapping[str, Any]) -> Happening:
    about = event.get("involvedObject") or {}
    when = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
    return Happening(
        time=seconds(when),
        warning=event.get("type") == "Warning",
        reason=event.get("reason", ""),
        message=event.get("message", ""),
        count=event.get("count") or 1,
        about=about.get("name", "") if about.get("kind") == "Pod" else "",
    )


def seconds(timestamp: str) -> float:
    """An RFC 3339 time as seconds since 1970."""
    return datetime.fromisoformat(timestamp).timestamp()
