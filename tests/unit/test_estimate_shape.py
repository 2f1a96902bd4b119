"""How many parameters a model has."""

import pytest

from llmtrain_operator.estimate.shape import LARGE_VOCABULARY, shape_of
from llmtrain_trainer import config, models
from llmtrain_trainer.data.tokenizers import ByteTokenizer
from tests.support.planner import spec

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 500,
}  # fmt: skip
SMALL = LLAMA | {"hidden_size": 32, "num_hidden_layers": 2}
CONFIGS = {
    "llama": LLAMA,
    "llama, tied, biased": LLAMA | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "llama, vocabulary of the tokenizer": {key: value for key, value in LLAMA.items() if key != "vocab_size"},
    "mistral": SMALL | {"model_type": "mistral", "head_dim": 16},
    "qwen2": SMALL | {"model_type": "qwen2"},
    "qwen3": SMALL | {"model_type": "qwen3", "head_dim": 16},
    "mixtral": SMALL | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 500},
}
OTHERS = {
    "gpt_neox": SMALL | {"model_type": "gpt_neox"},
    "gemma": SMALL | {"model_type": "gemma", "head_dim": 8},
}


def built(model):
    """The trained parameters of the model that the trainer makes of it."""
    parsed = config.Config(config.from_dict(config.Model, model, "model"), config.Data("/d"), config.Training(1))
    return sum(weight.numel() for weight in models.build_model(parsed, ByteTokenizer()).parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_of_known_types_are_counted_exactly(name):
    """Biases, norms and experts included."""
    shape = shape_of(spec(model={"config": CONFIGS[name]}))
    assert shape.exact
    assert shape.parameters == built({"config": CONFIGS[name]})


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_bounded_from_above(name):
    """And say so."""
    shape = shape_of(spec(model={"config": OTHERS[name]}))
    assert not shape.exact
    assert built({"config": OTHERS[name]}) <= shape.parameters <= 2 * built({"config": OTHERS[name]})


def test_idle_experts_are_no_work():
    """Two of four multiply for each token; all of them are stored."""
    given = CONFIGS["mixtral"]
    dense = shape_of(spec(model={"config": given | {"num_experts_per_tok": 4}}))
    sparse = shape_of(spec(model={"config": given}))
    assert dense.parameters == sparse.parameters
    assert dense.active - sparse.active == 2 * 2 * 3 * 32 * 96


def test_the_vocabulary_of_a_tokenizer_is_bounded_or_given():
    """What the members will load is not known here."""
    data = {"source": "/d", "tokenizer": "org/tokenizer"}
    guessed, given = shape_of(spec(data=data)), shape_of(spec(data=data), 1000)
    assert (guessed.vocabulary, guessed.exact) == (LARGE_VOCABULARY, False)
    assert (given.vocabulary, given.exact) == (1000, True)


@pytest.mark.parametrize(
    ("preset", "vocabulary", "published"),
    [
        ("llama-1b", 128_256, 1_235_814_400),
        ("llama-8b", 128_256, 8_030_261_248),
        ("llama-70b", 128_256, 70_553_706_496),
    ],
)
def test_published_sizes(preset, vocabulary, published):
    """To the last parameter."""
    assert shape_of(spec(model={"preset": preset}), 128_256).parameters == published
