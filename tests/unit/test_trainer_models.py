"""Model configs and their fit to tokenizer and data. (Weights are covered by the loss-curve test.)"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from llmtrain_trainer import flops, models
from llmtrain_trainer.config import parse
from llmtrain_trainer.errors import ConfigError, TrainerError

BYTES = SimpleNamespace(vocab_size=257, eos=256)


def config(model, **data):
    """A job with this model."""
    spec = {"model": model, "data": {"source": "/data", "sequenceLength": 64, **data}, "training": {"maxSteps": 1}}
    return parse(json.dumps(spec))


def test_a_preset_becomes_a_llama_with_the_tokenizers_vocabulary():
    """Shape from the preset, the rest from the data."""
    made = models.model_config(config({"preset": "llama-1b"}), BYTES)
    assert (made.model_type, made.hidden_size, made.num_hidden_layers) == ("llama", 2048, 16)
    assert (made.num_attention_heads, made.num_key_value_heads, made.intermediate_size) == (32, 8, 8192)
    assert (made.vocab_size, made.eos_token_id, made.max_position_embeddings) == (257, 256, 64)
    assert made.rope_parameters["rope_theta"] == 500_000.0
    assert made.tie_word_embeddings


def test_an_open_architecture_fills_in_the_usual():
    """Heads for kv heads, four times the width for the feed-forward."""
    made = models.model_config(config({"architecture": {"hiddenSize": 64, "layers": 2, "heads": 4}}), BYTES)
    assert (made.num_key_value_heads, made.intermediate_size) == (4, 256)


def test_an_inline_config_wins_over_the_tokenizer():
    """What the user writes stays; what is absent follows the data."""
    made = models.model_config(config({"config": {"model_type": "gpt2", "n_embd": 32, "eos_token_id": 7}}), BYTES)
    assert (made.model_type, made.n_embd, made.vocab_size, made.eos_token_id) == ("gpt2", 32, 257, 7)


def test_an_architectures_own_name_for_a_value_counts_too():
    """GPT-2 calls its positions n_positions; they must not shrink to one sample's length without a word."""
    made = models.model_config(config({"config": {"model_type": "gpt2", "n_embd": 32, "n_positions": 512}}), BYTES)
    assert (made.n_positions, made.max_position_embeddings) == (512, 512)


def test_a_pretrained_model_is_trained_as_such(tmp_path):
    """With its dropout, and with activation checkpointing where that is asked for."""
    shape = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2}
    models.build_model(config({"config": shape}), BYTES).eval().save_pretrained(tmp_path)
    assert models.build_model(config({"pretrained": str(tmp_path)}), BYTES).training


@pytest.mark.parametrize(
    ("model", "words"),
    [
        pytest.param({"preset": "gpt-huge"}, "spec.model.preset: 'gpt-huge' is none of gpt-tiny", id="preset"),
        pytest.param({"config": {"hidden_size": 3}}, "spec.model.config.model_type: missing", id="no-type"),
        pytest.param({"config": {"model_type": "nope"}}, "spec.model.config: .*nope", id="unknown-type"),
        pytest.param({"pretrained": "/does/not/exist"}, "spec.model.pretrained: /does/not/exist", id="absent"),
    ],
)
def test_an_impossible_model_is_named(model, words):
    """The field, the value, the choices."""
    with pytest.raises(ConfigError, match=words):
        models.build_model(config(model), BYTES)


def test_a_vocabulary_that_is_too_small_is_a_mismatch():
    """Both numbers and the remedy; a larger one than the tokenizer's is fine."""
    job = config({"preset": "gpt-tiny"})
    with pytest.raises(TrainerError, match=r"257 tokens .* 256: .*at least 257") as caught:
        models.check_fit(SimpleNamespace(vocab_size=256), job, BYTES)
    assert caught.value.reason == "VocabularyMismatch"
    models.check_fit(SimpleNamespace(vocab_size=300), job, BYTES)


def test_sequences_longer_than_the_model_can_place_are_refused():
    """Before any index runs out of range on an accelerator."""
    fitting = SimpleNamespace(vocab_size=257, max_position_embeddings=64)
    models.check_fit(fitting, config({"preset": "gpt-tiny"}), BYTES)
    with pytest.raises(ConfigError, match=r"spec.data.sequenceLength: 65 exceeds the model's 64 positions"):
        models.check_fit(fitting, config({"preset": "gpt-tiny"}, sequenceLength=65), BYTES)


@pytest.mark.parametrize(("tied", "expected"), [(True, 6 * (5 * 4 + 4 * 4)), (False, 6 * (5 * 4 + 4 * 4))])
def test_flops_count_every_matrix_that_multiplies(tied, expected):
    """An untied embedding is a look-up, a tied one is the output projection; attention adds 12 l h s."""
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 5, bias=False))
    if tied:
        model[2].weight = model[0].weight
    model.get_input_embeddings = lambda: model[0]
    model.config = SimpleNamespace(tie_word_embeddings=tied, num_hidden_layers=3, hidden_size=4)
    assert flops.flops_per_token(model, 10) == expected + 12 * 3 * 4 * 10


def test_an_unknown_device_has_no_peak():
    """No MFU is better than a guessed one."""
    assert flops.peak_flops(torch.device("cpu"), "bf16") is None
