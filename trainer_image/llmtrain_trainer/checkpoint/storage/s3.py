"""Durable storage in an S3 bucket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmtrain_trainer.checkpoint.storage.protocol import Listing


class S3Storage:
    """Objects below the prefix of an s3://bucket/prefix URI, reached as the AWS_* variables say."""

    def __init__(self, uri: str, environ: Mapping[str, str]) -> None:
        raise NotImplementedError

    @property
    def uri(self) -> str:
        """As the user wrote it."""
        raise NotImplementedError

    def prepare(self) -> None:
        """A bucket is never made: it belongs to the user."""

    def write(self, name: str, parts: Iterable[memoryview], size: int) -> None:
        """See `Storage.write`."""
        raise NotImplementedError

    def create(self, name: str, data: bytes) -> bool:
        """See `Storage.create`."""
        raise NotImplementedError

    def read(self, name: str) -> bytes | None:
        """See `Storage.read`."""
        raise NotImplementedError

    def read_into(self, name: str, offset: int, into: memoryview) -> int:
        """See `Storage.read_into`."""
        raise NotImplementedError

    def list(self, directory: str = "") -> Listing:
        """See `Storage.list`."""
        raise NotImplementedError

    def delete(self, names: Iterable[str]) -> None:
        """See `Storage.delete`."""
        raise NotImplementedError
