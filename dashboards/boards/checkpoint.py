"""Snapshots in memory and checkpoints in storage: how fresh, how large, and what taking them costs."""

from typing import Final

from dashboards.panel import Board, Panel, Query, Row, member, newest

_NAME: Final = "{{namespace}}/{{job}}"
_STALL: Final = member("snapshot_stall_seconds")

_MEMORY: Final = Row(
    "In memory",
    (
        Panel(
            "Step, snapshot, committed",
            "The step that training is at, the newest step that a member has a snapshot of, and the newest step that"
            " survives a loss.",
            (
                Query(newest("step"), f"{_NAME} trained"),
                Query(f"min by (namespace, job) ({member('snapshot_step')})", f"{_NAME} snapshot"),
                Query(newest("committed_step"), f"{_NAME} committed"),
            ),
            width=12,
        ),
        Panel(
            "Copies behind",
            "Steps that the committed step is behind the newest snapshot.",
            (Query(newest("replica_lag_steps"), _NAME),),
            width=12,
        ),
        Panel(
            "Stall of a snapshot",
            "How long training stands still for a snapshot, as the job's status has it.",
            (Query(newest("snapshot_stall_seconds"), _NAME),),
            unit="s",
            most=600.0,
        ),
        Panel(
            "Stall of a snapshot by member",
            "The same as each member has it: the shortest and the longest of the job.",
            (
                Query(f"min by (namespace, job) ({_STALL})", f"{_NAME} shortest"),
                Query(f"max by (namespace, job) ({_STALL})", f"{_NAME} longest"),
            ),
            unit="s",
            most=600.0,
        ),
        Panel(
            "Size of a snapshot",
            "Over all workers.",
            (Query(newest("snapshot_bytes"), _NAME),),
            unit="bytes",
            kind="bars",
        ),
    ),
)
_STORAGE: Final = Row(
    "In storage",
    (
        Panel(
            "Age of the newest checkpoint",
            "Time since the newest durable checkpoint. What the loss of all members at once would cost.",
            (Query(newest("checkpoint_age_seconds"), _NAME),),
            unit="s",
        ),
        Panel(
            "Newest checkpoint",
            "Step of the newest durable checkpoint.",
            (Query(newest("checkpoint_step"), _NAME),),
        ),
        Panel(
            "Saved",
            "1 if checkpoints are saved, 0 if the newest attempt failed or there is no storage.",
            (Query(newest("condition", matchers='type="Durable"'), _NAME),),
            kind="bars",
            most=1.0,
            colors=((0.0, "red"), (1.0, "green")),
        ),
        Panel(
            "Time of a save",
            "How long it took until the newest checkpoint was committed, and how long training stood still for it.",
            (
                Query(newest("checkpoint_save_seconds"), f"{_NAME} save"),
                Query(newest("checkpoint_stall_seconds"), f"{_NAME} stall"),
            ),
            unit="s",
            most=7200.0,
            width=6,
        ),
        Panel(
            "Throughput of a save",
            "Size of the newest checkpoint over the time that saving it took.",
            (Query(f"{newest('checkpoint_bytes')} / ({newest('checkpoint_save_seconds')} > 0)", _NAME),),
            unit="Bps",
            width=6,
        ),
        Panel(
            "Size of a checkpoint",
            "Of the newest one.",
            (Query(newest("checkpoint_bytes"), _NAME),),
            unit="bytes",
            kind="bars",
            width=6,
        ),
        Panel(
            "Restore by tier",
            "How long reading the state took at the beginning of the round, by where it was: memory, a peer, storage.",
            (Query(newest("restore_seconds", "tier"), f"{_NAME} {{{{tier}}}}"),),
            unit="s",
            kind="bars",
            most=3600.0,
            width=6,
        ),
    ),
)
BOARD: Final = Board(
    "checkpoint",
    "llmtrain: checkpoints",
    "Snapshots in memory and checkpoints in storage: how fresh, how large, and what taking them costs.",
    (_MEMORY, _STORAGE),
)
