"""From the job's spec to its backends. A backend's library is imported in its own process, when the run begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from llmtrain_operator.contract import uris
from llmtrain_trainer.config import Config, Tracking, local_path
from llmtrain_trainer.errors import ConfigError
from llmtrain_trainer.trackers.backend import Backend
from llmtrain_trainer.trackers.mlflow import MLflow
from llmtrain_trainer.trackers.swanlab import SwanLab
from llmtrain_trainer.trackers.tensorboard import TensorBoard
from llmtrain_trainer.trackers.wandb import WeightsAndBiases

_SCRATCH: Final = "/tmp"


def chosen(config: Config) -> tuple[str, ...]:
    """The names of the backends that the job asks for."""
    tracking = config.tracking
    return tuple(name for name in _MAKERS if getattr(tracking, name) is not None) if tracking else ()


def make(name: str, config: Config) -> Backend:
    """The backend of this name. Raises `ConfigError`."""
    if config.tracking is None or name not in chosen(config):
        raise ConfigError(f"spec.tracking.{name}: the job does not ask for it")
    return _MAKERS[name](config.tracking)


def _tensorboard(tracking: Tracking) -> Backend:
    assert tracking.tensorboard
    return TensorBoard(_folder(tracking.tensorboard.dir, "tensorboard.dir"))


def _wandb(tracking: Tracking) -> Backend:
    given = tracking.wandb
    assert given
    folder = _folder(given.dir or _SCRATCH, "wandb.dir")
    return WeightsAndBiases(given.project, given.entity, given.base_url, folder, online=given.mode == "online")


def _swanlab(tracking: Tracking) -> Backend:
    given = tracking.swanlab
    assert given
    folder = _folder(given.dir or f"{_SCRATCH}/swanlab", "swanlab.dir")
    return SwanLab(given.project, given.workspace, given.host, folder, online=given.mode == "online")


def _mlflow(tracking: Tracking) -> Backend:
    given = tracking.mlflow
    assert given
    uri = given.tracking_uri
    if not uris.is_web(uri):
        uri = _folder(uri, "mlflow.trackingUri").absolute().as_uri()
    return MLflow(uri, given.experiment)


_MAKERS: Final[dict[str, Callable[[Tracking], Backend]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "swanlab": _swanlab,
    "mlflow": _mlflow,
}


def _folder(place: str, field: str) -> Path:
    return Path(local_path(place, f"spec.tracking.{field}"))
