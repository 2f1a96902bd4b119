"""What rank 0 says of the job's experiment trackers, as condition Tracked and an event. They decide nothing."""

from __future__ import annotations

from llmtrain_operator import progress
from llmtrain_operator.conditions import find
from llmtrain_operator.plan.draft import Draft

_REMEDIES = {
    "TrackerHangs": "training goes on, and the tracker is started again after a pause; look whether its server answers",
    "TrackerFailed": "training goes on, and the tracker is started again after a pause; look at its address, key and"
    " folder in spec.tracking",
    "TrackerSlow": "the model is not affected",
    "PointsLost": "the tracker takes fewer points than training makes; raise tracking.everySteps",
    "Fenced": "a newer round writes to it",
}


def note_tracking(run: Draft) -> None:
    """Take in what the current round's members say; nothing where the job asks for no tracker."""
    told = next((p.tracking for p in progress.said(run.status, run.observed.agents) if p.tracking), None)
    if run.spec.tracking is None or told is None:
        return
    old = find(run.status.conditions, "Tracked")
    if told.error:
        remedy = _REMEDIES.get(told.reason, "training goes on")
        run.condition("Tracked", False, told.reason or "TrackerFailed", f"{told.error}; {remedy}")
        if old is None or (old.status, old.reason) != ("False", told.reason):
            run.tell("TrackingFailed", f"{told.error}; {remedy}", warning=True)
    elif told.kept:
        run.condition("Tracked", True, "Recorded", "points are kept in every tracker of spec.tracking")
    elif old is None:
        run.condition("Tracked", None, "NotYetRecorded", "the first point is still to come")
