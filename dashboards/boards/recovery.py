"""What was lost, how quickly jobs went on, and how much another loss would cost."""

from typing import Final

from dashboards.panel import Board, Panel, Query, Row, job, member, newest, rising

_NAME: Final = "{{namespace}}/{{job}}"
_LOST: Final = 'cause=~"detect|restart|restore|recompute|backoff"'

_INCIDENTS: Final = Row(
    "Incidents",
    (
        Panel(
            "Incidents by reason",
            "Incidents that are over, since the jobs' start, by what began them. Hang: a worker that did not go on.",
            (Query(f"sum by (reason) ({newest('incidents_total', 'reason')})", "{{reason}}"),),
            kind="bars",
        ),
        Panel(
            "Rounds lost",
            "Rounds that were lost, over time. An incident may cost several.",
            (Query(newest("restarts_total"), _NAME),),
        ),
        Panel(
            "Committed steps lost",
            "Committed steps that had to be done again, since each job's start. What is promised is none.",
            (Query(newest("lost_steps_total"), _NAME),),
            kind="stat",
            colors=((0.0, "green"), (1.0, "red")),
        ),
    ),
)
_SPEED: Final = Row(
    "How quickly",
    (
        Panel(
            "Newest recovery by phase",
            "Of each job's newest incident that is over: until it was noticed (detect), from there to the next round"
            " (round), from there to the next step (train). Together, the time without training.",
            (Query(newest("recovery_seconds", "phase"), f"{_NAME} {{{{phase}}}}"),),
            unit="s",
            kind="bars",
            most=3600.0,
        ),
        Panel(
            "Restore by tier",
            "How long reading the state took at the beginning of the round, by where it was: memory, a peer, storage.",
            (Query(newest("restore_seconds", "tier"), f"{_NAME} {{{{tier}}}}"),),
            unit="s",
            kind="bars",
            most=3600.0,
        ),
        Panel(
            "Objectives",
            "Whether each job's newest incident kept what spec.recovery.objectives asks for: 1 if it did, 0 if not.",
            (Query(newest("condition", matchers='type="ObjectivesMet"'), _NAME),),
            kind="bars",
            most=1.0,
            colors=((0.0, "red"), (1.0, "green")),
        ),
        Panel(
            "Time lost to recovery",
            "What recovering takes of each job's time at the moment, by cause.",
            (Query(rising("time_seconds_total", "namespace, job, cause", _LOST), f"{_NAME} {{{{cause}}}}"),),
            unit="percentunit",
            kind="stacked",
            most=1.5,
            width=12,
        ),
        Panel(
            "Recovering",
            "1 while a round is lost and the next has not done a step yet.",
            (Query(newest("condition", matchers='type="Recovering"'), _NAME),),
            kind="stacked",
            most=1.0,
            width=12,
        ),
    ),
)
_EXPOSURE: Final = Row(
    "What another loss would cost",
    (
        Panel(
            "Copies behind",
            "Steps that the step which survives a loss is behind the newest snapshot.",
            (Query(newest("replica_lag_steps"), _NAME),),
        ),
        Panel(
            "Pods by state",
            "The jobs' pods by what they are doing. Spares take a lost member's place in the very next round.",
            (Query(f"sum by (state) ({job('members_by_state')})", "{{state}}"),),
            kind="stacked",
        ),
        Panel(
            "Restarts of workers",
            "How often the agents have started workers anew.",
            (Query(f"sum by (namespace, job) ({member('worker_restarts_total')})", _NAME),),
            kind="bars",
        ),
        Panel(
            "Avoided nodes",
            "Nodes that new pods are kept off, because they failed the job again and again.",
            (Query(newest("avoided_nodes"), _NAME),),
            kind="stat",
            width=12,
            colors=((0.0, "green"), (1.0, "orange")),
        ),
        Panel(
            "Members that are slow",
            "Ranks that are persistently slower than their peers.",
            (Query(f"count by (namespace, job) ({job('straggler_ratio')}) or 0 * {newest('members')}", _NAME),),
            kind="stat",
            width=12,
            colors=((0.0, "green"), (1.0, "orange")),
        ),
    ),
)
BOARD: Final = Board(
    "recovery",
    "llmtrain: recovery",
    "What was lost, how quickly jobs went on, and how much another loss would cost.",
    (_INCIDENTS, _SPEED, _EXPOSURE),
)
