"""A corpus as one flat, memory-mapped file of token ids.

Documents are tokenised, each followed by the end-of-text token, and laid end to end; a sample is a window of that
file. Attention may look across a document's border inside a sample.

Guarantees: the file is built once per cache directory however many processes ask for it at once (they wait on a file
lock, which the kernel frees if the builder dies), appears whole or not at all, and equal sources give equal bytes and
an equal `digest` on every member, whatever the files' times. Limit: the whole corpus is tokenised before the first
step, and again in a pod whose cache directory is empty.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from filelock import FileLock, Timeout

from llmtrain_operator.contract import names
from llmtrain_trainer.data.corpus import Corpus, Piece
from llmtrain_trainer.data.tokenizers import Ids, Tokenizer, id_type
from llmtrain_trainer.errors import TrainerError

_LAYOUT: Final = 1  # raise it when the same sources would give other bytes
_BATCH_CHARACTERS: Final = 4 << 20
_TOKENS: Final = "tokens.bin"
_INDEX: Final = "index.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Index:
    """What the token file holds. `digest` is the SHA-256 of the ids, `skipped` the files left out and why."""

    tokens: int
    width: int
    digest: str
    skipped: tuple[str, ...]


def open_packed(corpus: Corpus, tokenizer: Tokenizer, cache_dir: Path) -> tuple[Ids, Index]:
    """The corpus's ids, shape (tokens,), mapped read-only; built on first use.

    Raises TrainerError: DataCorrupt from reading, OutputUnwritable when the cache cannot be written.
    """
    target = cache_dir / _cache_key(corpus, tokenizer)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        index = _read_index(target)
        if index is None:
            with _locked(target.with_suffix(".lock")):
                index = _read_index(target) or _build(corpus, tokenizer, target)
    except OSError as error:
        raise TrainerError(
            names.REASON_OUTPUT_UNWRITABLE,
            f"cannot write the token cache {target} ({error.strerror or error}); it takes "
            f"{id_type(tokenizer.vocab_size)().itemsize} bytes per token: give the pods more ephemeral storage",
        ) from error
    if index.tokens == 0:
        return np.zeros(0, dtype=id_type(tokenizer.vocab_size)), index
    return np.memmap(target / _TOKENS, dtype=id_type(tokenizer.vocab_size), mode="r"), index


def _cache_key(corpus: Corpus, tokenizer: Tokenizer) -> str:
    """Names everything that the ids depend on, with size and time standing for a file's content."""
    files = [(str(file.path.absolute()), file.format, file.size, file.modified_ns) for file in corpus.files]
    content = json.dumps([_LAYOUT, tokenizer.digest, corpus.text_field, corpus.tolerant, files])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("another process is tokenising the corpus; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read_index(target: Path) -> Index | None:
    """The index of a complete token file; None if there is none or it was damaged."""
    try:
        index = Index(**json.loads((target / _INDEX).read_text(encoding="utf-8")))
        complete = (target / _TOKENS).stat().st_size == index.tokens * index.width
    except (OSError, ValueError, TypeError):
        return None
    return index if complete else None


def _build(corpus: Corpus, tokenizer: Tokenizer, target: Path) -> Index:
    started = time.monotonic()
    partial = target.with_suffix(".partial")
    for leftover in (partial, target):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    with (partial / _TOKENS).open("wb") as file:
        tokens, digest = _write_tokens(corpus.pieces(), tokenizer, file)
    index = Index(tokens, id_type(tokenizer.vocab_size)().itemsize, digest, tuple(corpus.skipped))
    (partial / _INDEX).write_text(json.dumps(asdict(index)), encoding="utf-8")
    partial.rename(target)
    seconds = time.monotonic() - started
    _log.info("tokenised %d files into %d tokens in %.1f s", len(corpus.files), tokens, seconds)
    return index


def _write_tokens(pieces: Iterable[Piece], tokenizer: Tokenizer, file: BinaryIO) -> tuple[int, str]:
    """Write all ids; their number and SHA-256."""
    tokens = 0
    digest = hashlib.sha256()
    for ids in _encoded(pieces, tokenizer):
        tokens += len(ids)
        digest.update(ids.data)
        file.write(ids.data)
    file.flush()
    os.fsync(file.fileno())
    return tokens, digest.hexdigest()


def _encoded(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[Ids]:
    """Ids of the pieces in order, with an end-of-text token after each document."""
    end = np.array([tokenizer.eos], dtype=id_type(tokenizer.vocab_size))
    for batch in _batched(pieces):
        for piece, ids in zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True):
            yield np.concatenate((ids, end)) if piece.ends else ids


def _batched(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    filled = 0
    for piece in pieces:
        batch.append(piece)
        filled += len(piece.text)
        if filled >= _BATCH_CHARACTERS:
            yield batch
            batch, filled = [], 0
    yield batch
