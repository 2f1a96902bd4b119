"""Durable storage in an S3 bucket, through Apache's object_store.

Large objects are uploaded in parts straight from the caller's memory; S3 shows an object only when it is complete.
Exclusive creation is a conditional put (If-None-Match), which Amazon, MinIO, Ceph and versitygw decide at one place.
Every request is bounded in time, an upload or download by its standing still, so that against a server that is gone or
frozen it ends within half a minute, while one that is merely slow goes on.
Limit: an upload that was given up may leave parts that no listing shows: give the bucket a lifecycle rule for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from llmtrain_trainer.checkpoint.storage.protocol import Entry, Listing, StorageError
from llmtrain_trainer.checkpoint.storage.s3_errors import REMEDIES, code_of, explain
from llmtrain_trainer.errors import ConfigError

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig

T = TypeVar("T")

_REQUEST_SECONDS: Final = 14.0
_STALLED_SECONDS: Final = 20.0
_LONGEST_SECONDS: Final = 24 * 3600.0
_ASSEMBLY_BYTES_PER_SECOND: Final = 50e6  # how slowly a server may put the parts of an upload together
_PART: Final = 8 * 2**20
_RANGE: Final = 4 * 2**20
_SIGN_OF_LIFE: Final = 64 * 2**10
"""Bytes of a download that count as progress."""
_MOST_PARTS: Final = 9_000  # S3 allows 10,000
_REQUESTS_AT_ONCE: Final = 4
_SETTINGS: Final = {
    "access_key_id": ("AWS_ACCESS_KEY_ID",),
    "secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
    "session_token": ("AWS_SESSION_TOKEN",),
    "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
}


class S3Storage:
    """Objects below the prefix of an s3://bucket/prefix URI, reached as the AWS_* variables say."""

    def __init__(self, uri: str, environ: Mapping[str, str]) -> None:
        """Connects to nothing yet. Raises `ConfigError` for a URI or variable that cannot be."""
        self._uri = uri
        self._store = _store(uri, environ, _REQUEST_SECONDS)
        self._streams = _store(uri, environ, _LONGEST_SECONDS)  # bounded by their progress

    @property
    def uri(self) -> str:
        """As the user wrote it."""
        return self._uri

    def prepare(self) -> None:
        """A bucket is never made: it belongs to the user."""

    def write(self, name: str, parts: Iterable[memoryview], size: int) -> None:
        """See `Storage.write`."""
        with self._explained("write", name):
            if size > _PART:
                asyncio.run(_upload(self._streams, name, parts, size))
            else:
                obstore.put(self._store, name, b"".join(parts), use_multipart=False)

    def create(self, name: str, data: bytes) -> bool:
        """See `Storage.create`."""
        with self._explained("create", name):
            try:
                obstore.put(self._store, name, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

    def read(self, name: str) -> bytes | None:
        """See `Storage.read`."""
        with self._explained("read", name):
            try:
                return asyncio.run(_download(self._streams, name))
            except FileNotFoundError as error:
                if code_of(str(error)) != "NoSuchKey":
                    raise
                return None

    def read_into(self, name: str, offset: int, into: memoryview) -> int:
        """See `Storage.read_into`."""
        with self._explained("read", name):
            return asyncio.run(_download_into(self._streams, name, offset, into))

    def list(self, directory: str = "") -> Listing:
        """See `Storage.list`."""
        with self._explained("list", directory):
            found = obstore.list_with_delimiter(self._store, directory or None)
            files = [Entry(o["path"], o["size"], o["last_modified"].timestamp()) for o in found["objects"]]
            folders = [path.rpartition("/")[2] for path in found["common_prefixes"]]
            return Listing(tuple(sorted(files, key=lambda file: file.name)), tuple(sorted(folders)))

    def delete(self, names: Iterable[str]) -> None:
        """See `Storage.delete`."""
        doomed = list(names)
        if not doomed:
            return
        with self._explained("delete", doomed[0]):
            obstore.delete(self._store, doomed)

    @contextlib.contextmanager
    def _explained(self, doing: str, name: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError, TimeoutError) as error:
            reason, what = explain(str(error))
            message = f"{self._uri}: cannot {f'{doing} {name}'.strip()}: {what}; {REMEDIES[reason]}"
            raise StorageError(reason, message) from None  # the client's own text can hold credentials


async def _download_into(store: S3Store, name: str, offset: int, into: memoryview) -> int:
    """As much as there is, 0 if there is no such object; several ranges at once, since one connection may be slow."""
    gate = asyncio.Semaphore(_REQUESTS_AT_ONCE)

    async def fetch(start: int) -> int:
        room = into[start : start + _RANGE]
        async with gate:
            try:
                data = await _download(store, name, (offset + start, offset + start + len(room)))
            except (FileNotFoundError, BaseError) as error:
                if code_of(str(error)) not in ("NoSuchKey", "InvalidRange"):
                    raise
                return 0
        room[: len(data)] = data
        return len(data)

    return sum(await asyncio.gather(*(fetch(start) for start in range(0, len(into), _RANGE))))


async def _download(store: S3Store, name: str, part: tuple[int, int] | None = None) -> bytes:
    """An object, or bytes [part) of it. Raises TimeoutError when nothing comes any more."""
    options: GetOptions = {"range": part} if part else {}
    answer = await _in_time(obstore.get_async(store, name, options=options), _REQUEST_SECONDS)
    arriving = answer.stream(min_chunk_size=_SIGN_OF_LIFE)
    data = []
    with contextlib.suppress(StopAsyncIteration):
        while True:
            data.append(bytes(await _in_time(anext(arriving), _STALLED_SECONDS)))
    return b"".join(data)


async def _in_time(coming: Awaitable[T], seconds: float) -> T:
    try:
        return await asyncio.wait_for(coming, seconds)
    except TimeoutError:
        raise TimeoutError("timed out") from None


async def _upload(store: S3Store, name: str, parts: Iterable[memoryview], size: int) -> None:
    """Upload in parts. Raises TimeoutError when it does not move: no part taken, or the end not reached, in time."""
    watched = _Watched(parts)
    part = max(_PART, -(-size // _MOST_PARTS))
    put = obstore.put_async(
        store, name, watched, chunk_size=part, max_concurrency=_REQUESTS_AT_ONCE, use_multipart=True
    )
    uploading = asyncio.ensure_future(put)
    while not (await asyncio.wait([uploading], timeout=0.5))[0]:
        allowed = _STALLED_SECONDS + (size / _ASSEMBLY_BYTES_PER_SECOND if watched.over else 0)
        if time.monotonic() - watched.moved > allowed:
            uploading.cancel()
            raise TimeoutError("timed out")
    uploading.result()


class _Watched:
    """Iterates over parts, and knows when the last one was taken (`moved`, monotonic) and whether it was the last."""

    def __init__(self, parts: Iterable[memoryview]) -> None:
        self._parts = iter(parts)
        self.moved, self.over = time.monotonic(), False

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        self.moved = time.monotonic()
        try:
            return next(self._parts)
        except StopIteration:
            self.over = True
            raise


def _store(uri: str, environ: Mapping[str, str], seconds: float) -> S3Store:
    parts = urlsplit(uri)
    given = {key: next((environ[name] for name in found if environ.get(name)), "") for key, found in _SETTINGS.items()}
    settings: dict[str, Any] = {key: value for key, value in given.items() if value}
    endpoint = given["endpoint"]
    client: ClientConfig = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=5),
        "timeout": timedelta(seconds=seconds),
    }
    if bundle := environ.get("AWS_CA_BUNDLE"):
        client["root_certificate"] = _certificates(bundle)
    settings["unsigned_payload"] = not endpoint.startswith("http://")  # TLS proves the bytes too, for less work
    if not endpoint:
        settings["virtual_hosted_style_request"] = "." not in parts.netloc  # a dot would not fit the certificate
    try:
        return S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            client_options=client,
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=8)},
            **settings,
        )
    except (BaseError, ValueError) as error:
        what = type(error).__name__
        if "No CA certificates" in str(error):
            what = "the image has no CA certificates; install ca-certificates in it, or name a file in AWS_CA_BUNDLE"
        raise ConfigError(f"{uri!r} cannot be a place for checkpoints in S3: {what}") from error


def _certificates(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"AWS_CA_BUNDLE: cannot read {path}: {error.strerror}; name a file of PEM certificates"
        ) from error
