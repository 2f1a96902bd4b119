"""Places that outlive pods: directories (file://, pvc://) and S3 buckets, behind one protocol."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from llmtrain_operator.contract import names, uris
from llmtrain_trainer.checkpoint.storage.files import FileStorage
from llmtrain_trainer.checkpoint.storage.protocol import Entry, Listing, Storage, StorageError
from llmtrain_trainer.errors import ConfigError

__all__ = ["Entry", "Listing", "Storage", "StorageError", "open_storage"]


def open_storage(uri: str, environ: Mapping[str, str] = os.environ) -> Storage:
    """The storage that `uri` (file:///path, pvc://claim/path, s3://bucket/prefix) stands for; touches nothing yet.

    S3 is set up by the AWS_* variables of `environ`. Raises `ConfigError` for any other URI.
    """
    if uri.startswith("s3://"):
        from llmtrain_trainer.checkpoint.storage.s3 import S3Storage

        return S3Storage(uri, environ)
    volumes = environ.get(names.ENV_VOLUMES) or names.VOLUME_ROOT
    try:
        claim, path = uris.claim_of(uri), uris.local_path(uri, volumes)
    except ValueError as error:
        raise ConfigError(f"{error}; checkpoints can also be at s3://bucket/prefix") from error
    return FileStorage(uri, Path(path), Path(uris.mount_path(claim, volumes)) if claim else Path(path).parent)
