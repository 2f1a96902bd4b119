"""The volumes of a member's pod, and where the trainer has them."""

from __future__ import annotations

from typing import Any, Final

from llmtrain_operator import places
from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract import names, uris
from llmtrain_operator.manifests import flash
from llmtrain_operator.manifests.settings import Settings, has_own_image

AGENT_DIRECTORY: Final = "/llmtrain/agent"
TOKEN_DIRECTORY: Final = "/var/run/secrets/llmtrain"
CACHE_DIRECTORY: Final = "/var/lib/llmtrain"


def volumes(spec: JobSpec, settings: Settings) -> list[dict[str, Any]]:
    """Those of the pod itself, and the claims that the spec names."""
    token = {"audience": names.TOKEN_AUDIENCE, "expirationSeconds": 3600, "path": "token"}
    found: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {"name": "cache", "emptyDir": {}},
        *flash.volumes(spec),
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}},
    ]
    found += [
        {"name": _claim_volume(claim), "persistentVolumeClaim": {"claimName": claim}} for claim in places.claims(spec)
    ]
    if has_own_image(spec, settings):
        found.append({"name": "agent", "emptyDir": {}})
    return found


def mounts(spec: JobSpec, settings: Settings) -> list[dict[str, Any]]:
    """Where the trainer has them."""
    return [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "cache", "mountPath": CACHE_DIRECTORY},
        {"name": "token", "mountPath": TOKEN_DIRECTORY, "readOnly": True},
        *([{"name": "flash", "mountPath": names.FLASH_DIRECTORY}] if spec.checkpoint.flash.enabled else []),
        *({"name": _claim_volume(claim), "mountPath": uris.mount_path(claim)} for claim in places.claims(spec)),
        *([{"name": "agent", "mountPath": AGENT_DIRECTORY, "readOnly": True}] if has_own_image(spec, settings) else []),
    ]


def _claim_volume(claim: str) -> str:
    return f"claim-{claim}"[:63].rstrip("-.").replace(".", "-")
