"""Alert rules for Prometheus: what is worth waking somebody for, and what is worth a look in the morning. Pure.

Rules about a job's pace are about jobs that are meant to train: one that is suspended, has ended, or waits for capacity
raises none of them. Thresholds are settings: `@name@` in a rule stands for the chart's value `alerts.thresholds.name`,
and the chart, or `filled`, puts it there. Every alert has a section in docs/alerts.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import yaml

Severity = Literal["info", "warning", "critical"]
"""critical: training is lost, or nobody looks after it. warning: it costs time. info: worth knowing."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule. `lasting`: how long `expr` has to hold."""

    name: str
    expr: str
    lasting: str
    severity: Severity
    summary: str
    description: str

    @property
    def anchor(self) -> str:
        """Of its section in docs/alerts.md."""
        return self.name.lower()


_BY: Final = "by (namespace, job)"
_AT_WORK: Final = (
    f'\nunless on (namespace, job) max {_BY} (llmtrain_job_condition{{type=~"Complete|Failed|Suspended"}}) == 1'
)
_JOB: Final = "{{ $labels.namespace }}/{{ $labels.job }}"
# delta, not increase: seconds may be booked to another cause a little later, and a fall is no restart.
_WALL: Final = f'sum {_BY} (delta(llmtrain_job_time_seconds_total{{cause!~"suspended|waiting"}}[1h]))'
_USEFUL: Final = f'sum {_BY} (delta(llmtrain_job_time_seconds_total{{cause="productive"}}[1h]))'
_HANGS: Final = 'llmtrain_job_incidents_total{reason="Hang"}'
_PASSES: Final = "llmtrain_reconcile_duration_seconds_count"

JOBS: Final = (
    Alert(
        "LLMTrainGoodputLow",
        f"(\n  {_USEFUL}\n  or 0 * {_WALL}\n) / (\n  {_WALL} > 1200\n) < @goodputRatio@{_AT_WORK}",
        "10m",
        "warning",
        f"{_JOB} trained only {{{{ $value | humanizePercentage }}}} of the last hour",
        "Waiting for capacity and suspension are not counted. llmtrain goodput says what the rest went to.",
    ),
    Alert(
        "LLMTrainStalled",
        f'max {_BY} (llmtrain_job_condition{{type="Running"}}) == 1\n'
        f"and on (namespace, job) max {_BY} (changes(llmtrain_job_step[10m])) == 0\n"
        f"and on (namespace, job) max {_BY} (llmtrain_job_step) < max {_BY} (llmtrain_job_max_steps){_AT_WORK}",
        "10m",
        "critical",
        f"{_JOB} runs and has done no step for 20 minutes",
        "Its members train, as far as they say, and the step stays the same.",
    ),
    Alert(
        "LLMTrainObjectivesMissed",
        f'max {_BY} (llmtrain_job_condition{{type="ObjectivesMet"}}) == 0\n'
        f"and on (namespace, job) max {_BY} (llmtrain_job_restarts_total)"
        f" > min {_BY} (min_over_time(llmtrain_job_restarts_total[1h]))",
        "0m",
        "warning",
        f"{_JOB} took longer to recover, or lost more, than spec.recovery.objectives allows",
        "It is about the newest incident, and ends an hour after it.",
    ),
    Alert(
        "LLMTrainRecoverySlow",
        f'max {_BY} (llmtrain_job_condition{{type="Recovering"}}) == 1{_AT_WORK}',
        "@recoveryFor@",
        "critical",
        f"{_JOB} lost a round and has not trained since",
        "No step has been done for longer than a recovery should take. The condition Running says what it waits for.",
    ),
    Alert(
        "LLMTrainHang",
        f"max {_BY} ({_HANGS})\n> (max {_BY} ({_HANGS} offset 30m) or 0 * max {_BY} ({_HANGS}))",
        "0m",
        "warning",
        f"A worker of {_JOB} hung within the last 30 minutes",
        "It was killed and the job went on; the incident names the member and where it was.",
    ),
    Alert(
        "LLMTrainStraggler",
        f"max by (namespace, job, rank) (llmtrain_job_straggler_ratio) > @stragglerRatio@{_AT_WORK}",
        "15m",
        "warning",
        f"Rank {{{{ $labels.rank }}}} of {_JOB} takes {{{{ $value | humanize }}}} times as long as its peers",
        "All members wait for it in every step.",
    ),
    Alert(
        "LLMTrainReplicaLag",
        f"max {_BY} (llmtrain_job_replica_lag_steps) > @replicaLagSteps@{_AT_WORK}",
        "5m",
        "warning",
        f"The copies of {_JOB}'s snapshots are {{{{ $value }}}} steps behind",
        "A loss now costs these steps, because copies do not keep up with training.",
    ),
    Alert(
        "LLMTrainCheckpointTooOld",
        f"max {_BY} (llmtrain_job_checkpoint_age_seconds) > @checkpointAgeSeconds@{_AT_WORK}",
        "5m",
        "warning",
        f"The newest durable checkpoint of {_JOB} is {{{{ $value | humanizeDuration }}}} old",
        "The loss of all members at once would cost all training since then.",
    ),
    Alert(
        "LLMTrainJobFailed",
        f'max {_BY} (llmtrain_job_condition{{type="Failed"}}) == 1',
        "0m",
        "critical",
        f"{_JOB} has failed",
        "It does not go on by itself. The condition Failed has the trainer's own error.",
    ),
)
OPERATOR: Final = (
    Alert(
        "LLMTrainOperatorDown",
        "absent(llmtrain_leader)",
        "5m",
        "critical",
        "No operator of llmtrain is to be seen",
        "Jobs train on, but nobody replaces what they lose. Or Prometheus does not reach the operator.",
    ),
    Alert(
        "LLMTrainNoLeader",
        "max(llmtrain_leader) == 0",
        "1m",
        "critical",
        "No replica of llmtrain's operator leads",
        "A change of leaders takes seconds. Jobs train on, but nobody replaces what they lose.",
    ),
    Alert(
        "LLMTrainQueueStuck",
        f"max(llmtrain_queue_depth) > 0 and (sum(increase({_PASSES}[5m])) or vector(0)) == 0",
        "5m",
        "critical",
        "llmtrain's operator has jobs in its queue and finishes no pass",
        "It leads, and looks after no job.",
    ),
    Alert(
        "LLMTrainPassesFail",
        f'sum(rate({_PASSES}{{result="error"}}[10m])) / sum(rate({_PASSES}[10m])) > 0.5',
        "10m",
        "warning",
        "{{ $value | humanizePercentage }} of the passes of llmtrain's operator fail",
        "Each is tried again, later each time; its log says what went wrong.",
    ),
)
GROUPS: Final[Mapping[str, tuple[Alert, ...]]] = {"llmtrain-jobs": JOBS, "llmtrain-operator": OPERATOR}
ALERTS: Final = (*JOBS, *OPERATOR)

_SETTING: Final = re.compile(r"@(\w+)@")
_HEAD: Final = "# Written by python -m dashboards; see docs/alerts.md.\n"


class _Readable(yaml.SafeDumper):
    """Queries of several lines stay so."""


def _lines(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Readable.add_representer(str, _lines)


def text() -> str:
    """The rules as Prometheus reads them but for their settings, YAML."""
    groups = [{"name": name, "rules": [_rule(alert) for alert in alerts]} for name, alerts in GROUPS.items()]
    return _HEAD + yaml.dump({"groups": groups}, Dumper=_Readable, sort_keys=False, width=1000)


def settings(values: Mapping[str, Any]) -> dict[str, str]:
    """What to put for the settings: from the chart's values `alerts`."""
    return {name: str(value) for name, value in values["thresholds"].items()} | {"runbookUrl": values["runbookUrl"]}


def filled(rules: str, known: Mapping[str, str]) -> str:
    """`rules` with the settings in their place; KeyError for one that is not known."""
    return _SETTING.sub(lambda found: known[found[1]], rules)


def named(rules: str) -> frozenset[str]:
    """The settings that `rules` have."""
    return frozenset(_SETTING.findall(rules))


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": f"@runbookUrl@#{alert.anchor}",
        },
    }
