"""The spec of an `LLMTrainJob`: what a user may write, with every default.

The docstring under each field is what `kubectl explain` shows. The shortest valid job is `model`, `data` and
`training.maxSteps`. Rules that span fields stand beside the record that they are about; what neither types nor CEL
can say is in `validation`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from llmtrain_operator.api.autoscale import Autoscale
from llmtrain_operator.api.checkpoint import Checkpoint
from llmtrain_operator.api.record import Record, Rule
from llmtrain_operator.api.scheduling import Scheduling
from llmtrain_operator.api.tracking import Tracking
from llmtrain_operator.api.types import (
    CLAIM,
    Count,
    CountOrZero,
    Duration,
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


class Nodes(Record):
    """How many members (pods, one agent each) train, and how many workers each of them runs."""

    rules: ClassVar = (
        Rule(
            "!has(self.max) || self.min <= self.max",
            "nodes.min must not be greater than nodes.max",
            lambda n: n.min <= n.maximum,
            "min",
        ),
        Rule(
            "!has(self.desired) || (self.min <= self.desired && self.desired <= (has(self.max) ? self.max : self.min))",
            "nodes.desired must lie between nodes.min and nodes.max (which is nodes.min if absent)",
            lambda n: n.desired is None or n.min <= n.desired <= n.maximum,
            "desired",
        ),
        Rule(
            "(has(self.max) ? self.max : self.min) + self.spares <= 10000",
            "nodes.max (which is nodes.min if absent) and nodes.spares together must not be greater than 10000",
            lambda n: n.maximum + n.spares <= 10_000,
            "spares",
        ),
    )

    min: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Fewest members that may train. With fewer available the job waits. Default 1."""
    max: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Most members. Default: the value of min, so that the job is not elastic."""
    desired: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Members wanted now, between min and max; what `kubectl scale` and autoscalers set. Default: max."""
    spares: Annotated[int, Field(ge=0, le=64)] = 0
    """Pods beyond the members wanted that are kept ready, with everything loaded: when a member is lost, one takes its
    place in the very next round. Each asks for as much as a member. Default 0."""
    proc_per_node: Annotated[int, Field(ge=1, le=64)] = 1
    """Workers (training processes) per member; one accelerator each, if there are any. Default 1."""
    accelerator_resource: Annotated[str, Field(max_length=317, pattern=r"^[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+$")] | None = (
        None
    )
    """Extended resource of which each member requests procPerNode, such as nvidia.com/gpu. Default: none (CPU)."""

    @property
    def maximum(self) -> int:
        """`max` with its default filled in."""
        return self.min if self.max is None else self.max


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


class Entrypoint(Record):
    """Your own training script, with torchrun semantics, in place of the reference trainer."""

    rules: ClassVar = (
        Rule(
            "has(self.script) != has(self.module)",
            "give exactly one of entrypoint.script and entrypoint.module",
            lambda e: (e.script is None) != (e.module is None),
        ),
    )

    script: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Path of a Python file in the image or on a mounted volume."""
    module: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")] | None = (
        None
    )
    """Python module to run, as with python -m."""
    args: Annotated[tuple[Annotated[str, Field(max_length=4096)], ...], Field(max_length=256)] = ()
    """Command-line arguments. Default none."""


class Objectives(Record):
    """What recovery should achieve: each incident is measured against it, and the condition ObjectivesMet says how."""

    process: Duration | None = None
    """Most time from a worker's failure to the next step, such as 2s."""
    node: Duration | None = None
    """Most time from the loss of a pod, a node or its network to the next step, such as 5s."""
    lost_steps: CountOrZero | None = None
    """Committed steps that may be lost, such as 0."""


class Preflight(Record):
    """A quick check of each new member's node (matmul, memory bandwidth, network, disk) before it may join: a node that
    is slower than its peers' is rejected."""

    enabled: bool = False
    """Whether nodes are checked. Default false."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A node is rejected if a figure is below this share of its peers' median, twice in a row. Default 0.5."""
    seconds: Annotated[int, Field(ge=5, le=300)] = 10
    """Most time that the measurements may take. Default 10."""


class Recovery(Record):
    """What is done about failures."""

    max_restarts: Annotated[int, Field(ge=0, le=100_000)] = 10
    """Restarts after failing workers until the job fails; lost nodes and pods do not count. Default 10."""
    avoid_nodes: bool = True
    """Keep new pods off nodes that fail the job again and again, for an hour and more. Default true."""
    objectives: Objectives | None = None
    """What recovery should achieve."""
    preflight: Preflight = Preflight()
    """Whether a new member's node is checked before it may join."""
    numerics: Literal["fail", "rollback", "rollbackAndSkip"] = "rollback"
    """When the loss is no number, or rises far out of line and stays there: fail, go back to the last good state, or do
    that and leave out the samples that it came with. Of the reference trainer only. Default rollback."""
    straggler: Literal["report", "replace"] = "report"
    """What is done about a rank that is persistently slower than its peers: report it, or also replace its member's pod
    while the others go on, of which there must be nodes.min. Default report."""


class JobSpec(Record):
    """What to train, on what, and how."""

    rules: ClassVar = (
        Rule(
            "has(self.entrypoint) || has(self.model)",
            "model is required (unless entrypoint runs a script of your own)",
            lambda s: s.entrypoint is not None or s.model is not None,
            "model",
        ),
        Rule(
            "has(self.entrypoint) || has(self.data)",
            "data is required (unless entrypoint runs a script of your own)",
            lambda s: s.entrypoint is not None or s.data is not None,
            "data",
        ),
        Rule(
            "has(self.entrypoint) || has(self.training.maxSteps)",
            "training.maxSteps is required (unless entrypoint runs a script of your own)",
            lambda s: s.entrypoint is not None or s.training.max_steps is not None,
            "training.maxSteps",
        ),
        Rule(
            "has(self.entrypoint) || self.nodes.min * self.nodes.procPerNode <= self.training.globalBatchSize",
            "training.globalBatchSize must be at least nodes.min * nodes.procPerNode: each worker needs a sequence",
            lambda s: s.entrypoint or s.nodes.min * s.nodes.proc_per_node <= s.training.global_batch_size,
            "training.globalBatchSize",
        ),
        Rule(
            "!self.autoscale.enabled || (has(self.nodes.max) && self.nodes.min < self.nodes.max)",
            "autoscale.enabled needs a range to choose from: nodes.max must be greater than nodes.min",
            lambda s: not s.autoscale.enabled or s.nodes.min < s.nodes.maximum,
            "autoscale.enabled",
        ),
        Rule(
            "!has(self.entrypoint) || !has(self.tracking)",
            "tracking is the reference trainer's: a script of your own calls its tracker itself",
            lambda s: s.entrypoint is None or s.tracking is None,
            "tracking",
        ),
    )

    suspend: bool = False
    """Whether the job is held or stopped: no pods. Queueing systems such as Kueue set it. Default false."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Container image of the members. Default: the trainer image that the operator was installed with."""
    ttl_seconds_after_finished: CountOrZero | None = None
    """Seconds after the end until the job object is deleted. Default: never."""
    nodes: Nodes = Nodes()
    """How many members and workers."""
    autoscale: Autoscale = Autoscale()
    """Whether the operator chooses how many members train."""
    model: Model | None = None
    """The model. Required, unless entrypoint is given."""
    data: Data | None = None
    """The training text. Required, unless entrypoint is given."""
    training: Training = Training()
    """The optimisation. training.maxSteps is required, unless entrypoint is given."""
    deepspeed: DeepSpeed = DeepSpeed()
    """DeepSpeed settings."""
    entrypoint: Entrypoint | None = None
    """Your own script in place of the reference trainer."""
    checkpoint: Checkpoint = Checkpoint()
    """What a recovery starts from."""
    scheduling: Scheduling | None = None
    """How the members are placed and queued."""
    recovery: Recovery = Recovery()
    """What is done about failures."""
    tracking: Tracking | None = None
    """Experiment trackers that training is shown in. Default: none."""
    output: Place | None = None
    """Where the finished model goes (Hugging Face safetensors and tokenizer): a path, file:/// or pvc://claim/path."""
    template: FreeForm = Field(default_factory=dict)
    """A patch {metadata, spec} over the members' pod template, merged by name: resources, tolerations, volumes, ..."""
