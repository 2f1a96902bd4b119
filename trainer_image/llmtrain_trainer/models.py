"""Models: a preset, an open architecture, an inline Hugging Face config, or one pretrained, by directory or hub id.

Guarantee: a model from scratch has the same weights on every rank and at any world size, for the same seed.
Limit: each worker first holds the whole model in host memory, before DeepSpeed shards it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

import torch

from llmtrain_operator.contract import names, presets
from llmtrain_trainer import config as spec
from llmtrain_trainer import hub
from llmtrain_trainer.errors import ConfigError, TrainerError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_ATTENTION = "sdpa"


class Tokens(Protocol):
    """What a model must know of its tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos(self) -> int: ...


def build_model(config: spec.Config, tokens: Tokens) -> Any:
    """The job's model in fp32 on the CPU, checked against the tokenizer. Raises `TrainerError`."""
    if config.model.pretrained:
        model = _load(hub.local_directory(config.model.pretrained, "spec.model.pretrained", hub.MODEL_FILES))
    else:
        model = _from_scratch(model_config(config, tokens), config.training.seed)
    check_fit(model.config, config, tokens)
    if config.training.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    # `from_pretrained` leaves it in evaluation mode: no dropout, and activation checkpointing has no effect.
    return model.train()


def model_config(config: spec.Config, tokens: Tokens) -> PretrainedConfig:
    """The Hugging Face config of a model from scratch; vocabulary and special tokens follow the tokenizer."""
    common: dict[str, Any] = {
        "vocab_size": tokens.vocab_size,
        "max_position_embeddings": config.data.sequence_length,
        "bos_token_id": None,
        "eos_token_id": tokens.eos,
        "pad_token_id": None,
    }
    if config.model.config is not None:
        return _inline(common, config.model.config)
    # The class itself, not transformers' Auto machinery: a preset has to import one model's code only.
    from transformers.models.llama.configuration_llama import LlamaConfig

    shape = _shape(config.model)
    return LlamaConfig(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        intermediate_size=shape.intermediate_size or 4 * shape.hidden_size,
        tie_word_embeddings=shape.tie_embeddings,
        rms_norm_eps=shape.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        **common,
    )


def _shape(model: spec.Model) -> spec.Architecture:
    if model.architecture is not None:
        return model.architecture
    if model.preset not in presets.PRESETS:
        raise ConfigError(f"spec.model.preset: {model.preset!r} is none of {', '.join(presets.PRESETS)}")
    return spec.Architecture(**asdict(presets.PRESETS[model.preset]))


def _inline(common: dict[str, Any], given: dict[str, Any]) -> PretrainedConfig:
    """The user's own values, also where the architecture has another name for one of the `common` ones."""
    from transformers import CONFIG_MAPPING, AutoConfig

    if "model_type" not in given:
        raise ConfigError("spec.model.config.model_type: missing; Hugging Face needs it to choose the architecture")
    known = given["model_type"] in CONFIG_MAPPING  # its get() finds only what is imported already
    own_names = CONFIG_MAPPING[given["model_type"]].attribute_map if known else {}
    open_ones = {key: value for key, value in common.items() if own_names.get(key) not in given}
    try:
        return AutoConfig.for_model(**open_ones | given)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"spec.model.config: {error}") from error


def _from_scratch(config: PretrainedConfig, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return instantiate(config)


def instantiate(config: PretrainedConfig) -> Any:
    """The architecture with weights from torch's generator, where torch puts new tensors. Raises `ConfigError`."""
    if config.model_type == "llama":
        from transformers.models.llama import modeling_llama

        llama: Any = modeling_llama.LlamaForCausalLM
        return llama._from_config(config, attn_implementation=_ATTENTION, dtype=torch.float32)
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    try:
        return auto.from_config(config, attn_implementation=_ATTENTION, dtype=torch.float32)
    except ValueError as error:  # not a causal language model, or one without sdpa
        raise ConfigError(f"spec.model.config: {error}") from error


def _load(path: str) -> Any:
    import transformers

    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, attn_implementation=_ATTENTION, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"spec.model.pretrained: {path}: {error}") from error


def check_fit(model: PretrainedConfig, config: spec.Config, tokens: Tokens) -> None:
    """Raises `VocabularyMismatch` or `InvalidConfig` if the model cannot take the tokenizer's ids or the samples."""
    if tokens.vocab_size > model.vocab_size:
        raise TrainerError(
            names.REASON_VOCABULARY_MISMATCH,
            f"the tokenizer ({config.data.tokenizer}) has {tokens.vocab_size} tokens but the model's vocabulary has "
            f"{model.vocab_size}: use the model's own tokenizer in data.tokenizer, or for a model from scratch set "
            f"model.config.vocab_size to at least {tokens.vocab_size}",
        )
    positions = getattr(model, "max_position_embeddings", None)
    if positions is not None and positions < config.data.sequence_length:
        raise ConfigError(
            f"spec.data.sequenceLength: {config.data.sequence_length} exceeds the model's {positions} positions "
            "(max_position_embeddings); shorten the sequences or use a model with more positions"
        )
