"""The names of the metrics that operator and members export, as queries spell them."""

from __future__ import annotations

import functools
import re
from typing import Final

from llmtrain_operator.metrics import Metrics

_SUFFIXES: Final = {"histogram": ("_bucket", "_sum", "_count"), "gauge": ("",), "counter": ("",)}

MEMBER_METRICS: Final = frozenset(
    f"llmtrain_member_{name}"
    for name in (
        "step",
        "round",
        "loss",
        "gradient_norm",
        "learning_rate",
        "tokens_per_second",
        "mfu_ratio",
        "snapshot_stall_seconds",
        "snapshot_step",
        "committed_step",
        "checkpoint_step",
        "restore_seconds",
        "worker_restarts_total",
        "data_wait_seconds_total",
        "phase",
        "step_duration_seconds_bucket",
        "step_duration_seconds_sum",
        "step_duration_seconds_count",
    )
)


def names(text: str) -> frozenset[str]:
    """Of all families in Prometheus' text format, whether or not they have samples."""
    found = re.findall(r"^# TYPE (llmtrain_\w+) (\w+)$", text, re.MULTILINE)
    return frozenset(f"{name}{suffix}" for name, kind in found for suffix in _SUFFIXES[kind])


@functools.cache
def exported() -> frozenset[str]:
    """What a new operator process exports."""
    return names(Metrics().text().decode())
