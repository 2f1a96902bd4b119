"""Where a URI of the job spec (data.source, model.pretrained, output) lies inside a training pod. Pure.

`pvc://claim/path` is path inside a PersistentVolumeClaim that the operator mounts, `file:///path` and a plain path
are paths of the pod's own file system, such as an image's or a template's volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from llmtrain_operator.contract import names


@dataclass(frozen=True, slots=True)
class Location:
    """A path in the pod, and the claim that must be mounted for it to exist (None: no claim)."""

    path: str
    claim: str | None = None


def locate(uri: str) -> Location:
    """Resolve a URI or plain path. Raises ValueError that names the URI and what is accepted."""
    if "://" not in uri:
        return Location(uri)
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if ".." in PurePosixPath(path).parts:
        raise ValueError(f"{uri!r} leaves its volume: a path must not contain '..'")
    if parts.scheme == "file" and not parts.netloc and path.startswith("/"):
        return Location(path)
    if parts.scheme == "pvc" and parts.netloc:
        return Location(str(PurePosixPath(names.VOLUME_ROOT, parts.netloc, path.lstrip("/"))), claim=parts.netloc)
    raise ValueError(f"{uri!r} is not a path, file:///path or pvc://claim/path")
