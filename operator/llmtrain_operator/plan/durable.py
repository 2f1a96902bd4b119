"""What the members say of durable checkpoints, as status, conditions Durable and Protected, and events."""

from __future__ import annotations

from llmtrain_operator import progress
from llmtrain_operator.api import CheckpointStatus
from llmtrain_operator.conditions import short, timestamp
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import BEFORE_TRAINING, Checkpoints, Progress
from llmtrain_operator.plan.draft import Draft
from llmtrain_operator.plan.flash import keepers, restorable


def note_checkpoints(run: Draft) -> None:
    """Take in what the current round's members say, and say what it means for the job."""
    told = next((p for p in progress.said(run.status, run.observed.agents) if p.checkpoints), None)
    if told and told.checkpoints:
        old = run.status.checkpoint or CheckpointStatus()
        new = _with_tier(run, _newer(old, told, told.checkpoints, run.now))
        _tell(run, old, new, told.checkpoints)
        run.set(checkpoint=new)
    _say_whether_durable(run)
    say_whether_protected(run)


def _newer(old: CheckpointStatus, told: Progress, said: Checkpoints, now: float) -> CheckpointStatus:
    """`old` with what a worker says. Until it trains it does not know what is in the storage."""
    settled = told.phase not in BEFORE_TRAINING or said.restored_step is not None
    step = said.step if settled or said.step is not None else old.step
    same = step == old.step
    failed = bool(said.error) or (same and bool(old.error))
    changes = {
        "step": step,
        "saved_at": old.saved_at if same or step is None else timestamp(now),
        "stall_seconds": said.stall_seconds if said.stall_seconds is not None or not same else old.stall_seconds,
        "save_seconds": said.save_seconds if said.save_seconds is not None or not same else old.save_seconds,
        "size": said.size if said.size is not None or not same else old.size,
        "every": None if said.every is None else round(said.every),
        "reason": short(said.reason),
        "error": short(said.error or old.error) if failed else "",
        "error_reason": (said.error_reason if said.error else old.error_reason) if failed else "",
    }
    if settled and old.restored_round != told.round:
        changes |= {
            "restored_step": said.restored_step,
            "restored_from": said.restored_from,
            "restore_seconds": said.restore_seconds,
            "restored_round": told.round,
            "restored_tier": "",
        }
    return old.model_copy(update=changes)


def _with_tier(run: Draft, known: CheckpointStatus) -> CheckpointStatus:
    """With the farthest place that any worker has read from: all have waited for that one."""
    said = [p for p in progress.said(run.status, run.observed.agents) if p.checkpoints]
    if known.restored_step is None or not said or said[0].round != known.restored_round:
        return known
    tiers = {p.checkpoints.restored_tier for p in said if p.checkpoints} | {known.restored_tier}
    farthest = max((tier for tier in tiers if tier in names.TIERS), key=names.TIERS.index, default="")
    return known.model_copy(update={"restored_tier": farthest})


def _tell(run: Draft, old: CheckpointStatus, new: CheckpointStatus, said: Checkpoints) -> None:
    """Events for what changed. A checkpoint that was saved like the one before it is not worth one."""
    began = new.restored_round != old.restored_round
    if began:
        for name in said.skipped:
            run.tell("CheckpointDamaged", f"{name}; it is passed over, an older one is taken", warning=True)
    if began and new.restored_step is not None:
        again = max(0, run.status.best_step - new.restored_step)
        lost = f"; {again} step{'s are' if again > 1 else ' is'} done again" if again else ""
        run.tell(
            "Restored",
            f"round {new.restored_round} goes on at step {new.restored_step} from {new.restored_from}{lost}",
        )
    if new.error and (new.error_reason, bool(old.error)) != (old.error_reason, True):
        run.tell("CheckpointFailed", f"{new.error_reason}: {new.error}", warning=True)
    saved = new.step is not None and new.step not in (old.step, new.restored_step)
    if saved and not new.error and (old.step is None or old.error):
        run.tell("CheckpointSaved", f"step {new.step} is in durable storage")


def _say_whether_durable(run: Draft) -> None:
    known, durable = run.status.checkpoint, run.durable
    if run.spec.entrypoint is None and durable is None:
        remedy = "spec.checkpoint.durable.storage keeps checkpoints that outlive the pods"
        run.condition("Durable", False, "NoStorage", f"the job has no durable storage; {remedy}")
    elif known and known.error:
        run.condition("Durable", False, known.error_reason or "SaveFailed", known.error)
    elif known and known.step is not None:
        where = f" to {durable}" if durable else ""
        run.condition("Durable", True, "Saved", f"checkpoints are saved{where}; status.checkpoint tells of the newest")
    elif run.spec.entrypoint and known is None:
        run.condition("Durable", None, "NotReported", "the script reports no checkpoints")
    else:
        run.condition("Durable", None, "NotYetSaved", "the first checkpoint is still to come")


def say_whether_protected(run: Draft) -> None:
    """What a lost member would cost."""
    flash = run.status.flash
    whole = flash is not None and len(keepers(run)) == len(flash.holders)
    if flash and flash.committed_step is not None and flash.copies and whole:
        count = "any member" if flash.copies == 1 else f"any {flash.copies} members"
        run.condition(
            "Protected", True, "MemoryCopies", f"training survives the loss of {count} without durable storage"
        )
    elif run.checkpoint_step is not None:
        text = "after a loss the job goes on from its newest checkpoint"
        run.condition("Protected", True, "DurableCheckpoint", text)
    elif run.resumable:
        text = "there is no checkpoint yet: a lost member means that training begins again"
        run.condition("Protected", False, "NoCheckpointYet", text)
    elif run.spec.entrypoint:
        text = "the script has reported no checkpoint: what a lost member costs is up to the script"
        run.condition("Protected", False, "NoCheckpoints", text)
    elif restorable(run) is not None:
        text = (
            "a worker that fails costs nothing, but a lost member means that training begins again: nobody has a copy"
        )
        run.condition("Protected", False, "NoCopies", f"{text}; set checkpoint.flash.replicas, or durable.storage")
    else:
        text = "without durable storage a lost member means that training begins again"
        run.condition("Protected", False, "NoStorage", f"{text}; set spec.checkpoint.durable.storage")
