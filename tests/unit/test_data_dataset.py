"""The packed token file, its cache, and the dataset as the trainer opens it."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from llmtrain_operator.contract import names
from llmtrain_trainer.config import Data
from llmtrain_trainer.data import ByteTokenizer, open_dataset
from llmtrain_trainer.data.corpus import Corpus, find_files
from llmtrain_trainer.data.packing import open_packed
from llmtrain_trainer.errors import TrainerError

EOS = ByteTokenizer.eos


def write(root: Path, **texts: str) -> Path:
    root.mkdir(exist_ok=True)
    for name, text in texts.items():
        (root / f"{name}.txt").write_text(text)
    return root


def pack(source: Path, cache: Path, tokenizer: ByteTokenizer | None = None):
    return open_packed(
        Corpus(find_files(source, (), "auto"), "text", tolerant=True), tokenizer or ByteTokenizer(), cache
    )


class CountingTokenizer(ByteTokenizer):
    """Counts its calls, to see what is served from the cache."""

    calls = 0

    def encode_batch(self, texts):
        self.calls += 1
        return super().encode_batch(texts)


def test_documents_are_laid_end_to_end_each_with_an_end_token(tmp_path):
    """Files in order of their names; the ids are mapped from the file, not loaded."""
    tokens, index = pack(write(tmp_path / "in", b="two", a="one"), tmp_path / "cache")
    assert isinstance(tokens, np.memmap)
    assert tokens.tolist() == [*b"one", EOS, *b"two", EOS]
    assert index.tokens == 8


def test_a_dataset_is_tokenised_once(tmp_path):
    """The second process reads the cache; a changed file, or another tokenizer, makes a new one."""
    source = write(tmp_path / "in", a="some text")
    tokenizer = CountingTokenizer()
    first, _ = pack(source, tmp_path / "cache", tokenizer)
    again, _ = pack(source, tmp_path / "cache", tokenizer)
    assert tokenizer.calls == 1
    assert first.tolist() == again.tolist()
    write(source, a="other text")
    changed, _ = pack(source, tmp_path / "cache", tokenizer)
    assert tokenizer.calls == 2
    assert changed.tolist() == [*b"other text", EOS]
    tokenizer.digest = "another"
    pack(source, tmp_path / "cache", tokenizer)
    assert tokenizer.calls == 3


def test_the_digest_tells_content_from_names_and_times(tmp_path):
    """Members with equal text agree whatever their file systems say; one changed letter shows."""
    here, there = write(tmp_path / "here", a="text", b="more"), write(tmp_path / "there", a="text", b="more")
    os.utime(there / "a.txt", (1, 1))
    digests = [pack(source, tmp_path / "cache")[1].digest for source in (here, there)]
    assert digests[0] == digests[1]
    assert pack(write(there, b="mora"), tmp_path / "cache")[1].digest != digests[0]


def test_processes_that_start_together_tokenise_once(tmp_path):
    """The second one waits for the first, says so, and takes its result."""
    source = write(tmp_path / "in", a="shared")
    building, waiting = threading.Event(), threading.Event()

    class SlowTokenizer(CountingTokenizer):
        def encode_batch(self, texts):
            building.set()
            assert waiting.wait(20)
            return super().encode_batch(texts)

    class WaitingHandler(logging.Handler):
        def emit(self, record):
            if "another process is tokenising" in record.getMessage():
                waiting.set()

    slow, idle = SlowTokenizer(), CountingTokenizer()
    handler = WaitingHandler()
    log = logging.getLogger("llmtrain_trainer.data.packing")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        with ThreadPoolExecutor(2) as threads:
            builder = threads.submit(pack, source, tmp_path / "cache", slow)
            assert building.wait(20)
            waiter = threads.submit(pack, source, tmp_path / "cache", idle)
            results = [task.result(timeout=20)[0].tolist() for task in (builder, waiter)]
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    assert results[0] == results[1] == [*b"shared", EOS]
    assert (slow.calls, idle.calls) == (1, 0)


@pytest.mark.parametrize("damage", ["killed while building", "tokens cut short", "index cut short", "index gone"])
def test_an_incomplete_cache_is_built_again(damage, tmp_path):
    """What a killed process or a full disk left behind is never read as data."""
    source = write(tmp_path / "in", a="valuable")
    whole = pack(source, tmp_path / "cache")[0].tolist()
    (target,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    if damage == "killed while building":
        (target / "tokens.bin").write_bytes(b"half")
        target.rename(target.with_suffix(".partial"))
    elif damage == "index gone":
        (target / "index.json").unlink()
    else:
        victim = target / damage.replace("tokens cut short", "tokens.bin").replace("index cut short", "index.json")
        os.truncate(victim, victim.stat().st_size - 2)
    assert pack(source, tmp_path / "cache")[0].tolist() == whole


def test_an_unwritable_cache_is_named(tmp_path):
    """The error says where and how much room it takes."""
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(TrainerError, match=r"cannot write the token cache .*2 bytes per token") as caught:
        pack(write(tmp_path / "in", a="x"), tmp_path / "cache")
    assert caught.value.reason == names.REASON_OUTPUT_UNWRITABLE


def test_a_dataset_is_opened_from_the_spec(tmp_path):
    """Sources may be URIs; the split, the count and the skipped files are reported, also from the cache."""
    source = write(tmp_path / "in", a="0123456789" * 100, b="tail")
    (source / "bad.txt").write_bytes(b"\xff")
    data = Data(source=f"file://{source}", sequence_length=10, validation_fraction=0.1)
    for _ in range(2):
        dataset = open_dataset(data, tmp_path / "cache")
        assert (dataset.tokens, len(dataset.train), len(dataset.validation)) == (1006, 90, 10)
        assert dataset.tokenizer.decode(dataset.train[0]) == "01234567890"
        assert [skipped.count("bad.txt:1") for skipped in dataset.skipped] == [1]


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        pytest.param(
            {"sequence_length": 100}, names.REASON_DATA_MISSING, r"holds 6 tokens in 1 file.*\+ 1 = 101", id="too small"
        ),
        pytest.param({"source": "s3://x"}, names.REASON_INVALID_CONFIG, "spec.data.source: 's3://x'", id="scheme"),
        pytest.param({"tokenizer": "pvc:///x"}, names.REASON_INVALID_CONFIG, "spec.data.tokenizer: ", id="tokenizer"),
    ],
)
def test_a_spec_that_gives_no_samples_is_refused(data, reason, words, tmp_path):
    """The error names the field, the numbers and the remedy."""
    defaults = {"source": str(write(tmp_path / "in", a="short"))}
    with pytest.raises(TrainerError, match=words) as caught:
        open_dataset(Data(**{**defaults, **data}), tmp_path / "cache")
    assert caught.value.reason == reason
