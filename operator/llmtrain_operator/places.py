"""What a job's places need of its pods: the claims to mount, and how the members reach an S3 server. Pure.

Credentials are named here and never read: the kubelet puts a secret's values into the trainer's container, and nobody
else has a right to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract import uris


def checkpoints(spec: JobSpec) -> dict[str, str]:
    """Where checkpoints are written to and begun from, by the spec's fields."""
    given = spec.checkpoint
    durable = given.durable.storage if given and given.durable else None
    found = {"checkpoint.durable.storage": durable, "checkpoint.restoreFrom": given.restore_from if given else None}
    return {field: place for field, place in found.items() if place}


def trackers(spec: JobSpec) -> dict[str, str]:
    """Folders that experiment trackers write to, by the spec's fields."""
    given = spec.tracking
    if given is None:
        return {}
    uri = given.mlflow.tracking_uri if given.mlflow else None
    found = {
        "tracking.tensorboard.dir": given.tensorboard.dir if given.tensorboard else None,
        "tracking.wandb.dir": given.wandb.dir if given.wandb else None,
        "tracking.swanlab.dir": given.swanlab.dir if given.swanlab else None,
        "tracking.mlflow.trackingUri": None if uri and uris.is_web(uri) else uri,
    }
    return {field: place for field, place in found.items() if place}


def local(spec: JobSpec) -> dict[str, str]:
    """Every path, file:// and pvc:// URI of the spec, by field."""
    found = {
        "data.source": spec.data.source if spec.data else None,
        "data.tokenizer": spec.data.tokenizer if spec.data and spec.data.tokenizer != "byte" else None,
        "model.pretrained": spec.model.pretrained if spec.model else None,
        "output": spec.output,
        **trackers(spec),
        **checkpoints(spec),
    }
    return {
        field: place
        for field, place in found.items()
        if place and not place.startswith("s3://") and not uris.hub_id(place)
    }


def from_hub(spec: JobSpec) -> bool:
    """Whether members fetch a model or a tokenizer from a hub."""
    found = (spec.model.pretrained if spec.model else None, spec.data.tokenizer if spec.data else None)
    return any(place and uris.hub_id(place) for place in found)


def claims(spec: JobSpec) -> list[str]:
    """Names of the claims that the job's URIs refer to, each once."""
    found = (uris.claim_of(place) for place in local(spec).values())
    return sorted({claim for claim in found if claim})


def s3_environment(spec: JobSpec) -> list[dict[str, Any]]:
    """The trainer's variables for `checkpoint.s3`, those with credentials as references to the secret."""
    s3 = spec.checkpoint.s3 if spec.checkpoint else None
    if s3 is None:
        return []
    plain = {"AWS_ENDPOINT_URL": s3.endpoint, "AWS_REGION": s3.region}
    return [{"name": name, "value": value} for name, value in plain.items() if value] + list(_credentials(spec))


def tracker_environment(spec: JobSpec) -> list[dict[str, Any]]:
    """The trainer's variables with the credentials of `tracking`, as references to secrets."""
    given = spec.tracking
    if given is None:
        return []
    found: list[tuple[str, str, str | None]] = []
    if given.wandb and given.wandb.credentials:
        found.append(("WANDB_API_KEY", given.wandb.credentials.secret_name, given.wandb.credentials.key))
    if given.swanlab and given.swanlab.credentials:
        found.append(("SWANLAB_API_KEY", given.swanlab.credentials.secret_name, given.swanlab.credentials.key))
    if given.mlflow and (secret := given.mlflow.credentials):
        found += [
            ("MLFLOW_TRACKING_TOKEN", secret.secret_name, secret.token_key),
            ("MLFLOW_TRACKING_USERNAME", secret.secret_name, secret.username_key),
            ("MLFLOW_TRACKING_PASSWORD", secret.secret_name, secret.password_key),
        ]
    return [_from_secret(variable, name, key) for variable, name, key in found if key]


def _from_secret(variable: str, secret: str, key: str) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _credentials(spec: JobSpec) -> Iterator[dict[str, Any]]:
    given = spec.checkpoint.s3.credentials if spec.checkpoint and spec.checkpoint.s3 else None
    if given is None:
        return
    keys = {
        "AWS_ACCESS_KEY_ID": given.access_key_id_key,
        "AWS_SECRET_ACCESS_KEY": given.secret_access_key_key,
        "AWS_SESSION_TOKEN": given.session_token_key,
    }
    for name, key in keys.items():
        if key:
            yield _from_secret(name, given.secret_name, key)
