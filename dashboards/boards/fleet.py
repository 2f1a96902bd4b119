"""All jobs at a glance, and whether the operator itself is well."""

from typing import Final

from dashboards.panel import Board, Color, Panel, Query, Row, job, newest, rising

GOODPUT_COLORS: Final[tuple[tuple[float, Color], ...]] = ((0.0, "red"), (0.8, "orange"), (0.95, "green"))
_NAME: Final = "{{namespace}}/{{job}}"
_USEFUL: Final = job("accelerator_seconds_total", 'cause="productive"')
_SPENT: Final = job("accelerator_seconds_total", 'cause!="suspended"')
_PASSES: Final = "llmtrain_reconcile_duration_seconds"


def quantile(share: float, buckets: str, by: str = "le") -> str:
    """The quantile of a histogram's recent observations."""
    return f"histogram_quantile({share}, sum by ({by}) (rate({buckets}[$__rate_interval])))"


def _count(condition: str, value: int) -> str:
    """How many of the selected jobs have a condition that is so."""
    return f"count({newest('condition', matchers=condition)} == {value}) or 0 * count({newest('members')})"


_JOBS: Final = Row(
    "Jobs",
    (
        Panel(
            "Jobs by state",
            "How many jobs the operator looks after, by the state that kubectl get shows.",
            (Query("max by (state) (llmtrain_jobs)", "{{state}}"),),
            kind="stacked",
            width=12,
        ),
        Panel(
            "Goodput of the fleet",
            "Productive share of the accelerator time of the selected jobs since they started, suspension not counted.",
            (Query(f"sum({_USEFUL}) / sum({_SPENT})", "goodput"),),
            unit="percentunit",
            kind="stat",
            most=1.0,
            width=6,
            colors=GOODPUT_COLORS,
        ),
        Panel(
            "Members",
            "Members of the current rounds, and members that the jobs should have.",
            (
                Query(f"sum({newest('members')})", "in rounds"),
                Query(f"sum({newest('members_wanted')})", "wanted"),
            ),
            kind="stat",
            width=6,
        ),
        Panel(
            "Goodput by job",
            "Productive share of each job's time since its start, suspension not counted.",
            (Query(newest("goodput_ratio"), _NAME),),
            unit="percentunit",
            kind="bars",
            most=1.0,
            colors=GOODPUT_COLORS,
        ),
        Panel(
            "Progress by job",
            "Steps done, as a share of the steps to do.",
            (Query(f"{newest('step')} / ({newest('max_steps')} > 0)", _NAME),),
            unit="percentunit",
            kind="bars",
            most=1.0,
        ),
        Panel(
            "Time left by job",
            "Training time that is left at the present pace.",
            (Query(newest("seconds_left"), _NAME),),
            unit="s",
            kind="bars",
        ),
        Panel(
            "Where accelerators go",
            "Accelerators by what their time goes to at the moment. What is booked to another cause once more is known"
            " shows as a dip of the first.",
            (Query(rising("accelerator_seconds_total", "cause"), "{{cause}}"),),
            kind="stacked",
            width=12,
        ),
        Panel(
            "Tokens per second",
            "Tokens trained per second over all workers of each job.",
            (Query(newest("tokens_per_second"), _NAME),),
            unit="short",
            width=12,
        ),
    ),
)
_CONDITIONS: Final = (
    ("Objectives missed", 'type="ObjectivesMet"', 0),
    ("Degraded", 'type="Degraded"', 1),
    ("Straggling", 'type="Straggling"', 1),
    ("Not protected", 'type="Protected"', 0),
    ("Failed", 'type="Failed"', 1),
)
_TROUBLE: Final = Row(
    "Trouble",
    (
        Panel(
            "Jobs with trouble",
            "How many jobs missed their objectives in the newest incident, do not get snapshots copied, wait for a slow"
            " member, would lose training with a member, or failed.",
            tuple(
                Query(
                    f"count({newest('condition', matchers=which)} == {value}) or 0 * count({newest('members')})", name
                )
                for name, which, value in _CONDITIONS
            ),
            kind="bars",
            colors=((0.0, "green"), (1.0, "orange")),
        ),
        Panel(
            "Incidents by job",
            "Incidents since each job's start that are over.",
            (Query(f"sum by (namespace, job) ({newest('incidents_total', 'reason')})", _NAME),),
            kind="bars",
        ),
        Panel(
            "Committed steps lost",
            "Committed steps that had to be done again, since each job's start.",
            (Query(newest("lost_steps_total"), _NAME),),
            kind="bars",
            colors=((0.0, "green"), (1.0, "red")),
        ),
    ),
)
_OPERATOR: Final = Row(
    "Operator",
    (
        Panel(
            "Leaders",
            "Replicas that lead. For the seconds of a change there is none.",
            (Query("sum(llmtrain_leader)", "leaders"),),
            kind="stat",
            most=2.0,
            width=4,
            colors=((0.0, "red"), (1.0, "green"), (2.0, "orange")),
        ),
        Panel(
            "Queue",
            "Jobs that wait for a pass of the operator, or are in one.",
            (Query("max(llmtrain_queue_depth)", "jobs"),),
            width=10,
        ),
        Panel(
            "Wait for a pass",
            "How long a job was due for a pass before the pass began.",
            (
                Query(quantile(0.5, "llmtrain_queue_wait_seconds_bucket"), "median"),
                Query(quantile(0.99, "llmtrain_queue_wait_seconds_bucket"), "99 %"),
            ),
            unit="s",
            width=10,
        ),
        Panel(
            "Time of a pass",
            "How long a pass over a job takes.",
            (
                Query(quantile(0.5, f"{_PASSES}_bucket"), "median"),
                Query(quantile(0.99, f"{_PASSES}_bucket"), "99 %"),
            ),
            unit="s",
        ),
        Panel(
            "Passes",
            "Passes per second. An error is tried again, later each time.",
            (Query(f"sum by (result) (rate({_PASSES}_count[$__rate_interval]))", "{{result}}"),),
            unit="reqps",
        ),
        Panel(
            "Calls of the API server",
            "Requests per second by what they do and the answer's code; 0 is no answer.",
            (
                Query(
                    "sum by (verb, code) (rate(llmtrain_kubernetes_requests_total[$__rate_interval]))",
                    "{{verb}} {{code}}",
                ),
            ),
            unit="reqps",
        ),
    ),
)
BOARD: Final = Board(
    "fleet",
    "llmtrain: fleet",
    "All jobs at a glance: what they do, what the accelerators' time goes to, and whether the operator is well.",
    (_JOBS, _TROUBLE, _OPERATOR),
)
