"""`spec.checkpoint`: what a recovery starts from, and where that is kept."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtrain_operator import quantity
from llmtrain_operator.api.record import Record, Rule
from llmtrain_operator.api.types import Count, DurationOrAuto, Storage

SecretKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]


class Flash(Record):
    """Snapshots in the members' memory: what a recovery goes on from while enough of that is left."""

    enabled: bool = True
    """Whether there are any. Default true."""
    every_steps: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"],
        Field(
            json_schema_extra={
                "x-kubernetes-int-or-string": True,
                "x-kubernetes-validations": [
                    {
                        "rule": "type(self) == int ? self >= 1 : self == 'auto'",
                        "message": "everySteps must be a positive number of steps or auto",
                    }
                ],
            }
        ),
    ] = 1
    """Steps between snapshots, or auto: as often as maxOverhead allows. Default 1."""
    replicas: Annotated[int, Field(ge=0, le=2)] = 1
    """Members, beside its own, that keep a copy of each member's snapshot: so many can be lost at once. Default 1."""
    replicate_every: Count | None = None
    """Least steps between copies. Default: with each snapshot, as far as they keep up."""
    max_overhead: Annotated[float, Field(gt=0, le=0.5)] = 0.03
    """Most part of the time that snapshots take where everySteps is auto. Default 0.03."""
    memory: Annotated[str, Field(pattern=quantity.PATTERN, max_length=32)] | None = None
    """Memory for snapshots in each pod, such as 24Gi; it is added to the pod's request and limit. Default: computed
    from the model; of a pretrained model as much as the pod may use."""


class Durable(Record):
    """Checkpoints in storage that outlives the pods."""

    storage: Storage
    """Where: pvc://claim/path (shared by all members, ReadWriteMany), s3://bucket/prefix or file:///path."""
    every: DurationOrAuto = "10m"
    """Most time between checkpoints, such as 10m; auto: by the cost of a save and the failures. Default 10m."""
    every_steps: Count | None = None
    """Most optimizer steps between checkpoints. Default: time alone decides."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    """How many of the newest checkpoints are kept. Default 3."""
    bandwidth: Annotated[str, Field(pattern=quantity.PATTERN, max_length=32)] | None = None
    """Most bytes per second that each worker writes, such as 200Mi. Default: no limit."""


class S3Credentials(Record):
    """The secret, in the job's namespace, that holds the keys. The members read it; the operator never does."""

    secret_name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
    """Name of the secret."""
    access_key_id_key: SecretKey = "AWS_ACCESS_KEY_ID"
    """Key in the secret that holds the access key ID. Default AWS_ACCESS_KEY_ID."""
    secret_access_key_key: SecretKey = "AWS_SECRET_ACCESS_KEY"
    """Key in the secret that holds the secret access key. Default AWS_SECRET_ACCESS_KEY."""
    session_token_key: SecretKey | None = None
    """Key in the secret that holds a session token. Default: none."""


class S3(Record):
    """How the S3 server of s3:// URIs is reached."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^/?#@]+/?$", max_length=1024)] | None = None
    """URL of the server, such as https://minio.example:9000. Default: Amazon's for the region."""
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]+$", max_length=64)] | None = None
    """Region. Default: what the pod's environment says, else us-east-1."""
    credentials: S3Credentials | None = None
    """Keys in a secret. Default: workload identity of the members' service account, or the pod's environment."""


class Checkpoint(Record):
    """What a recovery starts from: the members' memory, else durable storage, else step 0; condition Protected says
    which."""

    rules: ClassVar = (
        Rule(
            "!has(self.s3) || (has(self.durable) && self.durable.storage.startsWith('s3://'))"
            " || (has(self.restoreFrom) && self.restoreFrom.startsWith('s3://'))",
            "checkpoint.s3 is given, but neither durable.storage nor restoreFrom is an s3:// URI",
            lambda c: (
                c.s3 is None
                or (c.durable is not None and c.durable.storage.startswith("s3://"))
                or (c.restore_from is not None and c.restore_from.startswith("s3://"))
            ),
            "s3",
        ),
    )

    flash: Flash = Flash()
    """Snapshots in memory."""
    durable: Durable | None = None
    """Checkpoints in storage."""
    restore_from: Storage | None = None
    """Another job's durable.storage, or a Hugging Face model, to start from while durable.storage has no checkpoint.
    Of a job the newest valid checkpoint is taken, whole: weights, optimizer, step; of a model the weights."""
    s3: S3 | None = None
    """How the S3 server is reached."""
