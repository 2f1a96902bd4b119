"""Condition Fits: a job that cannot fit its memory is told so before its workers die of it. It never holds a job up."""

from __future__ import annotations

from llmtrain_operator.conditions import find
from llmtrain_operator.estimate.fit import Fit, fits
from llmtrain_operator.plan.draft import Draft


def say_whether_it_fits(run: Draft) -> None:
    """Set the condition, if anything can be said; post an event when it turns False for another reason than before."""
    before = find(run.status.conditions, "Fits")
    verdict = _verdict(run)
    if verdict is None:
        if before is not None:
            run.condition(
                "Fits", None, "NothingKnown", "neither the model's size nor the memory that there is is known"
            )
        return
    run.condition("Fits", verdict.value, verdict.reason, verdict.message)
    told = before is not None and (before.status, before.reason) == ("False", verdict.reason)
    if not verdict.value and not told:
        run.tell("DoesNotFit", verdict.message, warning=True)


def _verdict(run: Draft) -> Fit | None:
    """Of the members wanted; if these fit and the fewest that may train do not, that is said too."""
    known = min(run.observed.accelerator_memory.values(), default=None)
    now = fits(run.spec, run.wanted, known)
    if now is None or not now.value or run.wanted == run.spec.nodes.min:
        return now
    fewest = fits(run.spec, run.spec.nodes.min, known)
    if fewest is None or fewest.value:
        return now
    text = f"{now.message}; with only nodes.min ({run.spec.nodes.min}) members {fewest.message}"
    return Fit(True, "FitsUnlessFewer", text, fewest.needed, fewest.there)
