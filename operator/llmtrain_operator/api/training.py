"""What is trained: the model, its data, the optimisation. Of `spec`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from llmtrain_operator.api.record import Record, Rule
from llmtrain_operator.api.types import (
    CLAIM,
    Count,
    CountOrZero,
    Fraction,
    FreeForm,
    ModelPlace,
    NonNegative,
    Place,
    Positive,
    Ratio,
)
from llmtrain_operator.contract.presets import PRESETS
from llmtrain_operator.contract.uris import HUB_ID


def _known_preset(name: str) -> str:
    if name not in PRESETS:
        raise ValueError(f"there is no such preset; there are {', '.join(PRESETS)}")
    return name


Preset = Annotated[str, AfterValidator(_known_preset), Field(json_schema_extra={"enum": list(PRESETS)})]


class Architecture(Record):
    """A decoder-only transformer (RMSNorm, rotary positions, SwiGLU, grouped-query attention) with fresh weights."""

    rules: ClassVar = (
        Rule(
            "self.hiddenSize % (2 * self.heads) == 0",
            "hiddenSize must be a multiple of 2 * heads: a head has hiddenSize / heads dimensions, rotated in pairs",
            lambda a: a.hidden_size % (2 * a.heads) == 0,
            "hiddenSize",
        ),
        Rule(
            "!has(self.kvHeads) || self.heads % self.kvHeads == 0",
            "heads must be a multiple of kvHeads: each key/value head serves the same number of query heads",
            lambda a: a.kv_heads is None or a.heads % a.kv_heads == 0,
            "kvHeads",
        ),
    )

    hidden_size: Count
    """Width of the residual stream; a multiple of 2 * heads."""
    layers: Count
    """Transformer blocks."""
    heads: Count
    """Attention heads."""
    kv_heads: Count | None = None
    """Key/value heads; divides heads. Default: heads."""
    intermediate_size: Count | None = None
    """Width inside the feed-forward block. Default: chosen from hiddenSize."""
    tie_embeddings: bool = True
    """Whether the output layer shares the input embedding's weights. Default true."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary position frequencies. Default 10000."""
    norm_epsilon: Positive = 1e-5
    """Added to the variance in RMSNorm. Default 0.00001."""


class Model(Record):
    """What is trained: exactly one of preset, architecture, config, pretrained."""

    rules: ClassVar = (
        Rule(
            "[has(self.preset), has(self.architecture), has(self.config), has(self.pretrained)]"
            ".filter(given, given).size() == 1",
            "give exactly one of model.preset, model.architecture, model.config, model.pretrained",
            lambda m: sum(x is not None for x in (m.preset, m.architecture, m.config, m.pretrained)) == 1,
        ),
    )

    preset: Preset | None = None
    """A named architecture with fresh weights; gpt-tiny trains on a laptop."""
    architecture: Architecture | None = None
    """An architecture of your own, with fresh weights."""
    config: FreeForm | None = None
    """A Hugging Face model config, such as {model_type: llama, hidden_size: 512, ...}, with fresh weights."""
    pretrained: ModelPlace | None = None
    """A Hugging Face model to start from: its directory (a path in the pod, file:///path or pvc://claim/path), or its
    hub id, ORG/NAME or ORG/NAME@REVISION, which members fetch from HF_ENDPOINT with HF_TOKEN."""


class Data(Record):
    """Training text, and how it becomes samples."""

    source: Place
    """File or directory: a path in the pod, file:///path or pvc://claim/path (mounted by the operator)."""
    include: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=64)] = ()
    """Globs, relative to source, of the files to read, such as **/*.py. Default: every file with a known suffix."""
    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    """Format of the files; auto goes by suffix. Default auto."""
    text_field: Annotated[str, Field(min_length=1, max_length=256)] = "text"
    """Field (JSONL) or column (Parquet) that holds the text. Default text."""
    tokenizer: Annotated[str, Field(pattern=rf"^(byte|/.*|file:///.*|{CLAIM}|{HUB_ID})$", max_length=1024)] = "byte"
    """byte, or where a tokenizer.json or a Hugging Face tokenizer directory lies, or a hub id. Default byte."""
    sequence_length: Annotated[int, Field(ge=2, le=2**24)] = 256
    """Tokens per sample. Default 256."""
    validation_fraction: Fraction = 0.01
    """Share of the samples held out for validation. Default 0.01; 0 turns validation off."""
    shuffle: bool = True
    """Whether samples come in a random order, given by training.seed. Default true."""


class Optimizer(Record):
    """The optimizer and its peak learning rate."""

    type: Literal["AdamW", "SGD"] = "AdamW"
    """AdamW or SGD. Default AdamW."""
    lr: Positive = 3e-4
    """Peak learning rate. Default 0.0003."""
    weight_decay: NonNegative = 0.1
    """Decoupled weight decay (AdamW) or L2 penalty (SGD); not applied to norms and biases. Default 0.1."""
    betas: Annotated[tuple[Fraction, ...], Field(min_length=2, max_length=2)] = (0.9, 0.95)
    """AdamW's two decay rates. Default [0.9, 0.95]."""
    eps: Positive = 1e-8
    """AdamW's denominator term. Default 0.00000001."""
    momentum: Fraction = 0.0
    """SGD's momentum. Default 0."""


class Schedule(Record):
    """How the learning rate changes over the steps."""

    type: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the way down from the peak after warm-up. Default cosine."""
    warmup_steps: CountOrZero = 0
    """Steps over which the learning rate rises from 0 to its peak; at most training.maxSteps. Default 0."""
    min_lr_ratio: Ratio = 0.1
    """Learning rate at the last step as a share of the peak. Default 0.1."""


class Evaluation(Record):
    """Validation loss and perplexity."""

    every_steps: CountOrZero = 0
    """Steps between evaluations. Default 0: only after the last step."""
    max_batches: Count = 8
    """Most global batches of validation data per evaluation. Default 8."""


class Training(Record):
    """The optimisation, independent of how many workers there are."""

    rules: ClassVar = (
        Rule(
            "!has(self.maxSteps) || self.schedule.warmupSteps <= self.maxSteps",
            "schedule.warmupSteps must not be greater than maxSteps",
            lambda t: t.max_steps is None or t.schedule.warmup_steps <= t.max_steps,
            "schedule.warmupSteps",
        ),
        Rule(
            "!has(self.microBatchSize) || self.microBatchSize <= self.globalBatchSize",
            "microBatchSize must not be greater than globalBatchSize",
            lambda t: t.micro_batch_size is None or t.micro_batch_size <= t.global_batch_size,
            "microBatchSize",
        ),
    )

    max_steps: Count | None = None
    """Optimizer steps after which the job is complete. Required, unless spec.entrypoint is given."""
    global_batch_size: Annotated[int, Field(ge=1, le=2**24)] = 8
    """Sequences per optimizer step over all workers; constant however many there are. Default 8."""
    micro_batch_size: Count | None = None
    """Most sequences that one worker processes at once; the rest is accumulated. Default: its share, at most 8."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of the computation; optimizer state is fp32. fp16 needs an accelerator. Default bf16."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Seed of the weights and of the sample order. Default 42."""
    gradient_clipping: NonNegative = 1.0
    """Largest norm of the gradient. Default 1.0; 0 turns clipping off."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time. Default false."""
    optimizer: Optimizer = Optimizer()
    """The optimizer."""
    schedule: Schedule = Schedule()
    """The learning-rate schedule."""
    evaluation: Evaluation = Evaluation()
    """When and on how much the validation loss is computed."""


class DeepSpeed(Record):
    """DeepSpeed: typed fields for what the operator manages, config for the rest."""

    rules: ClassVar = (
        Rule(
            "self.offloadOptimizer == 'none' || self.stage > 0",
            "offloadOptimizer needs ZeRO: stage must be 1, 2 or 3",
            lambda d: d.offload_optimizer == "none" or d.stage > 0,
            "offloadOptimizer",
        ),
    )

    stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: 0 nothing, 1 optimizer state, 2 also gradients, 3 also weights are sharded. Default 2."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """Where the optimizer state lives: none (on the accelerator) or cpu (host memory). Default none."""
    config: FreeForm = Field(default_factory=dict)
    """DeepSpeed's own configuration, passed on as it is. Keys that a typed field decides must not contradict it."""
