"""MLflow: one run for the job, found by a tag with its UID, on a server or in a folder.

The record is asked, curve by curve, for the newest step that it has: MLflow would append a point a second time, and
a folder may have half of the values of a step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from llmtrain_trainer.trackers.backend import Fenced, Run
from llmtrain_trainer.trackers.files import Curves
from llmtrain_trainer.trackers.points import Point

TAG: Final = "llmtrain.job"
ROUND: Final = "llmtrain.round"
_MOST: Final = 1000
_MOST_PARAMS: Final = 100
_LONGEST: Final = 500
"""Metrics and parameters in one request, and characters of a parameter: MLflow's limits, of old servers too."""


class MLflow:
    """A run of the experiment; `uri`: a server's, or file:///path."""

    def __init__(self, uri: str, experiment: str) -> None:
        self._uri, self._experiment = uri, experiment

    def begin(self, run: Run) -> int:
        """See `Backend.begin`."""
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        os.environ |= {"MLFLOW_ALLOW_FILE_STORE": "true"}  # in maintenance, and all that needs no server
        # Its own are 120 s and 7 more attempts, each later than the last: too long to be told that nobody answers.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow import MlflowClient

        self._round = run.round
        self._client: Any = MlflowClient(self._uri)
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
        runs = self._client.search_runs([experiment], filter_string=f"tags.`{TAG}` = '{run.id}'", max_results=1)
        stored = runs[0] if runs else self._create(experiment, run)
        self._id = stored.info.run_id
        self._check()
        self._client.set_tag(self._id, ROUND, str(run.round))
        self._client.set_terminated(self._id, "RUNNING")
        metrics = self._client.get_run(self._id).data._metric_objs  # the only place that has the steps
        self._curves = Curves({metric.key: int(metric.step) for metric in metrics})
        self._kept = self._curves.whole
        return self._kept

    def _create(self, experiment: str, run: Run) -> Any:
        from mlflow.entities import Param

        stored = self._client.create_run(experiment, run_name=run.name, tags={TAG: run.id})
        params = [Param(name, text) for name, text in _flat(run.config)]
        for first in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(stored.info.run_id, params=params[first : first + _MOST_PARAMS])
        return stored

    def log(self, points: Sequence[Point]) -> None:
        """See `Backend.log`."""
        from mlflow.entities import Metric

        self._check()
        batch: list[Any] = []
        for each in points:
            values = self._curves.lacking(each)
            if len(batch) + len(values) > _MOST:
                self._client.log_batch(self._id, batch)
                batch = []
            batch += [Metric(name, value, round(each.time * 1000), each.step) for name, value in values.items()]
        if batch:
            self._client.log_batch(self._id, batch)
        self._kept = points[-1].step

    def kept(self) -> int:
        """See `Backend.kept`."""
        return self._kept

    def finish(self) -> None:
        """See `Backend.finish`."""
        self._client.set_terminated(self._id, "FINISHED")

    def _check(self) -> None:
        newest = self._client.get_run(self._id).data.tags.get(ROUND, "")
        if newest.isdigit() and int(newest) > self._round:
            raise Fenced(f"round {newest} writes to MLflow's run {self._id}, this is a leftover of round {self._round}")


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Parameters such as `spec.training.maxSteps`; what is not given is left out."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", str(value)[:_LONGEST]
