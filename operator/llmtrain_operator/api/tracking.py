"""`spec.tracking`: the experiment trackers that training is shown in, and how they are reached."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from llmtrain_operator.api.checkpoint import SecretKey
from llmtrain_operator.api.record import Record, Rule
from llmtrain_operator.api.types import CLAIM, Count, Place
from llmtrain_operator.contract.uris import is_web

SecretName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/\\#?%:\s][^/\\#?%:\n]*$")]
Url = Annotated[str, Field(pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$", max_length=1024)]
TrackingUri = Annotated[
    str, Field(pattern=rf"^(https?://[^/?#@\s]+(/[^?#\s]*)?|/.*|file:///.*|{CLAIM})$", max_length=1024)
]
Mode = Literal["online", "offline"]


class TensorBoard(Record):
    """Event files."""

    dir: Place
    """Folder of this job's event files: pvc://claim/path, file:///path or a path in the pod; a volume that any member
    can write to, since rank 0 may be any of them."""


class ApiKey(Record):
    """The secret, in the job's namespace, that holds the key. The members read it; the operator never does."""

    secret_name: SecretName
    """Name of the secret."""
    key: SecretKey = "API_KEY"
    """Key in the secret that holds the API key. Default API_KEY."""


_OFFLINE_DIR: Final = Rule(
    "self.mode != 'offline' || has(self.dir)",
    "dir is required where mode is offline: what is kept in the pod goes with it",
    lambda t: t.mode != "offline" or t.dir is not None,
    "dir",
)
_ONLINE_KEY: Final = Rule(
    "(self.mode == 'online') == has(self.credentials)",
    "credentials are required where mode is online, and of no use where it is offline",
    lambda t: (t.mode == "online") == (t.credentials is not None),
    "credentials",
)


class WeightsAndBiases(Record):
    """A run in Weights & Biases, the same one for the job's whole life."""

    rules: ClassVar = (_OFFLINE_DIR, _ONLINE_KEY)

    project: Name
    """Project of the run."""
    entity: Name | None = None
    """User or team that owns the project. Default: the key's."""
    mode: Mode = "online"
    """online, or offline: files in dir that `wandb sync` sends later. Default online."""
    dir: Place | None = None
    """Folder of the run's files. Required where mode is offline. Default: in the pod."""
    base_url: Url | None = None
    """URL of a server of your own. Default: that of the service."""
    credentials: ApiKey | None = None
    """API key. Required where mode is online."""


class SwanLab(Record):
    """An experiment in SwanLab, the same one for the job's whole life."""

    rules: ClassVar = (_OFFLINE_DIR, _ONLINE_KEY)

    project: Name
    """Project of the experiment."""
    workspace: Name | None = None
    """User or organisation that owns the project. Default: the key's."""
    mode: Mode = "online"
    """online, or offline: files in dir that `swanlab sync` sends later. Default online."""
    dir: Place | None = None
    """Folder of the run's files. Required where mode is offline. Default: in the pod."""
    host: Url | None = None
    """URL of a server of your own. Default: that of the service."""
    credentials: ApiKey | None = None
    """API key. Required where mode is online."""


class MLflowCredentials(Record):
    """The secret, in the job's namespace, that holds a token, or a user's name and password. The members read it; the
    operator never does."""

    rules: ClassVar = (
        Rule(
            "has(self.tokenKey) != (has(self.usernameKey) && has(self.passwordKey))"
            " && has(self.usernameKey) == has(self.passwordKey)",
            "give either tokenKey, or usernameKey and passwordKey",
            lambda c: (
                (c.token_key is not None) != (c.username_key is not None and c.password_key is not None)
                and (c.username_key is None) == (c.password_key is None)
            ),
        ),
    )

    secret_name: SecretName
    """Name of the secret."""
    token_key: SecretKey | None = None
    """Key in the secret that holds a bearer token."""
    username_key: SecretKey | None = None
    """Key in the secret that holds a user's name."""
    password_key: SecretKey | None = None
    """Key in the secret that holds the user's password."""


class MLflow(Record):
    """A run in MLflow, the same one for the job's whole life."""

    rules: ClassVar = (
        Rule(
            "!has(self.credentials) || self.trackingUri.startsWith('http')",
            "credentials are for a server: trackingUri is a folder",
            lambda m: m.credentials is None or is_web(m.tracking_uri),
            "credentials",
        ),
    )

    tracking_uri: TrackingUri
    """URL of the tracking server (https://host), or a folder: pvc://claim/path, file:///path, a path in the pod."""
    experiment: Name = "llmtrain"
    """Experiment of the run; it is made if it is not there. Default llmtrain."""
    credentials: MLflowCredentials | None = None
    """How the server is entered. Default: without."""


class Tracking(Record):
    """Experiment trackers; each one that is given is written to, by rank 0. They never stop training: condition Tracked
    says how they fare."""

    rules: ClassVar[tuple[Any, ...]] = (
        Rule(
            "has(self.tensorboard) || has(self.wandb) || has(self.swanlab) || has(self.mlflow)",
            "give at least one of tracking.tensorboard, tracking.wandb, tracking.swanlab, tracking.mlflow",
            lambda t: any(x is not None for x in (t.tensorboard, t.wandb, t.swanlab, t.mlflow)),
        ),
    )

    every_steps: Count = 1
    """Steps between two points; the last step and those with a validation have one always. Default 1."""
    tensorboard: TensorBoard | None = None
    """TensorBoard."""
    wandb: WeightsAndBiases | None = None
    """Weights & Biases."""
    swanlab: SwanLab | None = None
    """SwanLab."""
    mlflow: MLflow | None = None
    """MLflow."""
