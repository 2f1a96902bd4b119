"""Byte and Hugging Face tokenizers, and what they save."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from llmtrain_operator.contract import names
from llmtrain_trainer.data import ByteTokenizer, load_tokenizer
from llmtrain_trainer.errors import TrainerError

SAMPLES = ["plain words, twice plain words", "  indented\n\ttabs\r\n", "é漢字🎉", "\x00\x7f ­", "", "don't stop"]


def train_bpe(path, end="<|endoftext|>"):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(SAMPLES * 3, trainer)
    bpe.enable_truncation(4)
    bpe.save(str(path))
    return path


@given(st.text())
def test_bytes_lose_nothing(text):
    """Any text comes back, one id per byte, all below the end-of-text token."""
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode([*ids.tolist(), tokenizer.eos]) == text
    assert tokenizer.vocab_size == tokenizer.eos + 1


@pytest.mark.parametrize("kind", ["byte", "file", "directory"])
def test_a_saved_tokenizer_gives_transformers_the_same_ids(kind, tmp_path):
    """AutoTokenizer loads what is saved next to an exported model, with the same ids, text and end token."""
    source = {"byte": "byte", "file": str(tmp_path / "own-name.json"), "directory": str(tmp_path)}[kind]
    train_bpe(tmp_path / ("tokenizer.json" if kind == "directory" else "own-name.json"))
    tokenizer = load_tokenizer(source)
    exported = tmp_path / "exported"
    exported.mkdir()
    tokenizer.save(exported)
    loaded = AutoTokenizer.from_pretrained(exported)
    assert loaded.eos_token_id == tokenizer.eos
    assert len(loaded) == tokenizer.vocab_size
    for text, ids in zip(SAMPLES, tokenizer.encode_batch(SAMPLES), strict=True):
        assert loaded(text, truncation=False, add_special_tokens=False)["input_ids"] == ids.tolist()
        assert loaded.decode(ids.tolist()) == tokenizer.decode(ids) == text


def test_a_file_that_cuts_text_for_inference_does_not_cut_the_corpus(tmp_path):
    """Truncation stored in tokenizer.json is ignored."""
    tokenizer = load_tokenizer(str(train_bpe(tmp_path / "t.json")))
    text = "nothing of this sentence may be missing"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text).dtype == np.uint16


@pytest.mark.parametrize("declared", ["<stop>", {"content": "<stop>", "lstrip": False}], ids=["text", "with flags"])
def test_the_end_token_is_the_one_that_the_config_names(declared, tmp_path):
    """tokenizer_config.json wins over the list of well-known tokens."""
    train_bpe(tmp_path / "tokenizer.json", end="<stop>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": declared}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.decode([tokenizer.eos]) == ""
    assert tokenizer.eos == 0


def _no_json(path):
    (path / "tokenizer.json").write_text("{}")


def _no_end(path):
    train_bpe(path / "tokenizer.json", end="<stop>")


def _bad_config(path):
    train_bpe(path / "tokenizer.json")
    (path / "tokenizer_config.json").write_text("{")


@pytest.mark.parametrize(
    ("prepare", "reason", "words"),
    [
        pytest.param(lambda _: None, names.REASON_DATA_MISSING, "holds no readable tokenizer.json", id="empty dir"),
        pytest.param(lambda path: path.rmdir(), names.REASON_DATA_MISSING, "Use `byte`", id="no such path"),
        pytest.param(_no_json, names.REASON_DATA_CORRUPT, "is not a Hugging Face tokenizer.json", id="other file"),
        pytest.param(_no_end, names.REASON_INVALID_CONFIG, "no end-of-text token", id="no end token"),
        pytest.param(_bad_config, names.REASON_DATA_CORRUPT, "tokenizer_config.json", id="broken config"),
    ],
)
def test_an_unusable_tokenizer_is_named_with_the_remedy(prepare, reason, words, tmp_path):
    """The error carries the field, the path and the reason."""
    path = tmp_path / "tok"
    path.mkdir()
    prepare(path)
    with pytest.raises(TrainerError, match=words) as caught:
        load_tokenizer(str(path))
    assert caught.value.reason == reason
    assert "spec.data.tokenizer" in str(caught.value)
    assert str(path) in str(caught.value)
