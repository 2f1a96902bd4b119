"""From `spec.data` to batches: find, read, tokenise, pack, split, assemble, prefetch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llmtrain_operator.contract import names
from llmtrain_trainer import config, hub
from llmtrain_trainer.data.corpus import Corpus, find_files
from llmtrain_trainer.data.packing import open_packed
from llmtrain_trainer.data.prefetching import Prefetch, prefetch
from llmtrain_trainer.data.samples import IGNORED_LABEL, MicroBatch, Samples, batches, split, validation_batches
from llmtrain_trainer.data.tokenizers import BYTE, ByteTokenizer, Tokenizer, load_tokenizer
from llmtrain_trainer.errors import TrainerError

__all__ = [
    "IGNORED_LABEL",
    "ByteTokenizer",
    "Dataset",
    "MicroBatch",
    "Prefetch",
    "Samples",
    "Tokenizer",
    "batches",
    "cache_directory",
    "load_tokenizer",
    "open_dataset",
    "prefetch",
    "validation_batches",
]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A tokenised corpus. `digest` is equal on two members exactly if they see the same ids (SHA-256).

    `tokens` counts the whole corpus, end-of-text tokens included; `skipped` says which files were left out and why.
    """

    train: Samples
    validation: Samples
    tokenizer: Tokenizer
    tokens: int
    digest: str
    skipped: tuple[str, ...]


def open_dataset(data: config.Data, cache_dir: Path) -> Dataset:
    """The dataset that a spec describes; tokenised under `cache_dir` on first use.

    Raises TrainerError: DataMissing, DataCorrupt, InvalidConfig, or OutputUnwritable for the cache.
    """
    source = Path(config.local_path(data.source, "spec.data.source"))
    tokenizer = load_tokenizer(_local(data.tokenizer))
    corpus = Corpus(find_files(source, data.include, data.format), data.text_field, tolerant=source.is_dir())
    tokens, index = open_packed(corpus, tokenizer, cache_dir)
    train, validation = split(tokens, data.sequence_length, data.validation_fraction)
    if len(train) == 0:
        raise TrainerError(
            names.REASON_DATA_MISSING,
            f"spec.data.source {data.source!r} holds {index.tokens} tokens in {len(corpus.files)} file(s), but one "
            f"sample needs spec.data.sequenceLength + 1 = {data.sequence_length + 1}; add text or shorten the samples",
        )
    return Dataset(train, validation, tokenizer, index.tokens, index.digest, index.skipped)


def _local(tokenizer: str) -> str:
    if tokenizer == BYTE:
        return tokenizer
    return hub.local_directory(tokenizer, "spec.data.tokenizer", hub.TOKENIZER_FILES)


def cache_directory() -> Path:
    """Where tokenised data is kept: the pod's cache volume, or the user's cache outside a pod."""
    return Path(os.environ.get(names.ENV_DATA_CACHE) or Path("~/.cache/llmtrain/data").expanduser())
