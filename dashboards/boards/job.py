"""One job: how far it is, how well it learns, how fast it is, and what each of its members does."""

from typing import Final

from dashboards.boards.fleet import GOODPUT_COLORS, quantile
from dashboards.panel import Board, Panel, Query, Row, member, newest, rising

_MEMBER: Final = "member {{member}}"

_OVERVIEW: Final = Row(
    "Overview",
    (
        Panel(
            "Progress",
            "Steps done, as a share of the steps to do.",
            (Query(f"{newest('step')} / ({newest('max_steps')} > 0)", "done"),),
            unit="percentunit",
            kind="stat",
            most=1.0,
            width=6,
        ),
        Panel(
            "Time left",
            "Training time that is left at the present pace.",
            (Query(newest("seconds_left"), "left"),),
            unit="s",
            kind="stat",
            width=6,
        ),
        Panel(
            "Goodput",
            "Productive share of the time since the start, suspension not counted.",
            (Query(newest("goodput_ratio"), "goodput"),),
            unit="percentunit",
            kind="stat",
            most=1.0,
            width=6,
            colors=GOODPUT_COLORS,
        ),
        Panel(
            "Members",
            "Members of the current round, and members that the job should have.",
            (Query(newest("members"), "in the round"), Query(newest("members_wanted"), "wanted")),
            kind="stat",
            width=6,
        ),
        Panel(
            "Where time goes",
            "What the job's time goes to at the moment: seconds per second, by cause.",
            (Query(rising("time_seconds_total", "cause"), "{{cause}}"),),
            unit="percentunit",
            kind="stacked",
            most=1.5,
            width=12,
        ),
        Panel(
            "Pods by state",
            "The job's pods by what they are doing.",
            (Query(newest("members_by_state", "state"), "{{state}}"),),
            kind="stacked",
            width=12,
        ),
    ),
)
_LEARNING: Final = Row(
    "Learning",
    (
        Panel(
            "Loss",
            "Mean training loss of the newest step, and the newest validation loss, in nats per token.",
            (Query(newest("loss"), "training"), Query(newest("validation_loss"), "validation")),
            most=100.0,
            width=12,
        ),
        Panel(
            "Gradient norm",
            "Norm of the gradient before clipping.",
            (Query(newest("gradient_norm"), "norm"),),
            width=6,
        ),
        Panel(
            "Learning rate",
            "Learning rate of the newest step.",
            (Query(newest("learning_rate"), "rate"),),
            most=10.0,
            width=6,
        ),
        Panel("Steps", "Optimizer steps done. It falls where steps are done again.", (Query(newest("step"), "step"),)),
        Panel(
            "Tokens per second",
            "Tokens trained per second over all workers.",
            (Query(newest("tokens_per_second"), "tokens/s"),),
            unit="short",
        ),
        Panel(
            "Model FLOPs utilisation",
            "Estimated share of the hardware's peak arithmetic that the model uses. Only for accelerators whose peak is"
            " known.",
            (Query(newest("mfu_ratio"), "MFU"),),
            unit="percentunit",
            most=1.0,
            needs="accelerator",
        ),
    ),
)
_MEMBERS: Final = Row(
    "Members",
    (
        Panel(
            "Time of a step",
            "How long steps take, over all members of the job.",
            (
                Query(quantile(0.5, member("step_duration_seconds_bucket")), "median"),
                Query(quantile(0.99, member("step_duration_seconds_bucket")), "99 %"),
            ),
            unit="s",
        ),
        Panel(
            "Waiting for data",
            "Share of each member's time in which its workers wait for data.",
            (Query(f"sum by (member) (rate({member('data_wait_seconds_total')}[$__rate_interval]))", _MEMBER),),
            unit="percentunit",
            most=1.5,
        ),
        Panel(
            "Step of each member",
            "The newest step that each member's workers have done.",
            (Query(f"max by (member) ({member('step')})", _MEMBER),),
        ),
        Panel(
            "Phase of each member",
            "What each member's workers are doing; several lines are several phases within a moment.",
            (Query(f"sum by (phase) ({member('phase')})", "{{phase}}"),),
            kind="stacked",
        ),
        Panel(
            "Restarts of workers",
            "How often each member's agent has started workers anew.",
            (Query(f"max by (member) ({member('worker_restarts_total')})", _MEMBER),),
            kind="bars",
        ),
        Panel(
            "Slow ranks",
            "Time of a persistently slow rank's own part of a step over that of its peers. Empty if none is slow.",
            (Query(newest("straggler_ratio", "rank"), "rank {{rank}}"),),
            least=1.0,
            needs="straggler",
        ),
    ),
)
BOARD: Final = Board(
    "job",
    "llmtrain: job",
    "One training job: how far it is, how well it learns, how fast it is, and what each of its members does.",
    (_OVERVIEW, _LEARNING, _MEMBERS),
    one_job=True,
)
