"""The spec of an `LLMTrainJob`: what a user may write, with every default.

The docstring under each field is what `kubectl explain` shows. The shortest valid job is `model`, `data` and
`training.maxSteps`. Rules that span fields stand beside the record that they are about; what neither types nor CEL
can say is in `validation`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from llmtrain_operator.api.autoscale import Autoscale
from llmtrain_operator.api.checkpoint import Checkpoint
from llmtrain_operator.api.record import Record, Rule
from llmtrain_operator.api.recovery import Recovery
from llmtrain_operator.api.scheduling import Scheduling
from llmtrain_operator.api.tracking import Tracking
from llmtrain_operator.api.training import Data, DeepSpeed, Model, Training
from llmtrain_operator.api.types import CountOrZero, FreeForm, Place


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
