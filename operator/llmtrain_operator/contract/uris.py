"""Where a URI of the job spec (data.source, model.pretrained, output) lies inside a training pod. Pure.

`pvc://claim/path` is a path inside a PersistentVolumeClaim that the operator mounts; `file:///path` and a plain path
are paths of the pod's own file system, such as the image's or a volume's of the template. Functions on places of the
file system raise a ValueError that names the URI and what is accepted.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

from llmtrain_operator.contract import names

HUB_ID: Final = r"[A-Za-z0-9][-A-Za-z0-9._]*/[A-Za-z0-9][-A-Za-z0-9._]*(@[A-Za-z0-9][-A-Za-z0-9._/]*)?"
"""A model on a hub: ORG/NAME, or ORG/NAME@REVISION with a branch, tag or commit."""


def hub_id(place: str) -> tuple[str, str | None] | None:
    """Repository and revision (None: the default branch) if `place` is a hub id."""
    if not re.fullmatch(HUB_ID, place):
        return None
    repository, _, revision = place.partition("@")
    return repository, revision or None


def is_web(place: str) -> bool:
    """Whether this is a server's URL."""
    return place.startswith(("http://", "https://"))


def mount_path(claim: str, root: str = names.VOLUME_ROOT) -> str:
    """Where a claim is mounted."""
    return f"{root}/{claim}"


def local_path(uri: str, root: str = names.VOLUME_ROOT) -> str:
    """The path in the pod that a URI or plain path stands for; `root` is where the claims are mounted."""
    claim, path = _parse(uri)
    return path if claim is None else str(PurePosixPath(mount_path(claim, root), path.lstrip("/")))


def claim_of(uri: str) -> str | None:
    """The claim that has to be mounted for the path to exist, None if none is needed."""
    return _parse(uri)[0]


def _parse(uri: str) -> tuple[str | None, str]:
    if "://" not in uri:
        return None, uri
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if ".." in PurePosixPath(path).parts:
        raise ValueError(f"{uri!r} leaves its volume: the path must not contain '..'")
    if parts.scheme == "file" and not parts.netloc and path.startswith("/"):
        return None, path
    if parts.scheme == "pvc" and parts.netloc:
        return parts.netloc, path
    raise ValueError(f"{uri!r} is not a path, file:///path or pvc://claim/path")
