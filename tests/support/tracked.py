"""What lies in the records of trackers, read as their own tools do: each point of a run, in the order of the record."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from llmtrain_trainer.trackers.blocklog import BlockLog

Record = list[tuple[int, str, float]]
"""Step, name, value."""


def tensorboard(folder: Path) -> Record:
    """All files of the folder through TensorBoard's own accumulator, and nothing thinned out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    found = [
        (event.step, name, event.value) for name in accumulator.Tags()["scalars"] for event in accumulator.Scalars(name)
    ]
    return sorted(found, key=lambda each: each[0])


def wandb(folder: Path) -> Record:
    """The history records of all rounds' offline runs, in the order in which `wandb sync` sends them."""
    from wandb.proto.wandb_internal_pb2 import Record as Row

    found: Record = []
    for data in _records(sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))):
        row = Row.FromString(data)
        if row.HasField("history"):
            values = {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in row.history.item}
            found += [(int(values["_step"]), k, json.loads(v)) for k, v in values.items() if not k.startswith("_")]
    return found


def swanlab(folder: Path) -> Record:
    """The scalar records of all rounds' offline runs."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record as Row

    rows = map(Row.FromString, _records(sorted(folder.glob("run-*/run-*.swanlab"))))
    return [(row.scalar.step, row.scalar.key, row.scalar.value.number) for row in rows if row.HasField("scalar")]


def mlflow(folder: Path) -> Record:
    """The metrics of the one run, by MLflow's client."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from mlflow import MlflowClient

    client = MlflowClient(folder.as_uri())
    experiments = [each.experiment_id for each in client.search_experiments()]
    [run] = client.search_runs(experiments)
    points = [point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key)]
    return [(point.step, point.key, point.value) for point in points]


READERS: Final[dict[str, Callable[[Path], Record]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "swanlab": swanlab,
    "mlflow": mlflow,
}


def _records(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            yield from BlockLog(file).records()
