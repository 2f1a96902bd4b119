"""How a model lies on the accelerators, and what cannot be. Pure.

The operator itself does data parallelism only; tensor and pipeline parallelism are there to ask what they would change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llmtrain_operator.api import JobSpec
from llmtrain_operator.api.problem import Problem
from llmtrain_operator.contract import batches
from llmtrain_operator.estimate.compute import Recompute
from llmtrain_operator.estimate.shape import Shape

Offload = Literal["none", "optimizer", "parameters"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asks for beside the spec; None: as the spec has it."""

    nodes: int | None = None
    tensor: int = 1
    pipeline: int = 1
    stage: int | None = None
    recompute: Recompute | None = None
    offload: Offload | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is. `workers` = `data` * `tensor` * `pipeline`, one accelerator each; `nodes` members of
    `per_node` workers. A data-parallel replica takes `micro_steps` micro-batches of `micro_batch` sequences of `length`
    tokens per step. `element`: bytes of a number in the computation. `offload`: what lies in host memory, parameters
    always with the optimizer."""

    nodes: int
    per_node: int
    data: int
    tensor: int
    pipeline: int
    stage: int
    offload: Offload
    recompute: Recompute
    micro_batch: int
    micro_steps: int
    global_batch: int
    length: int
    element: int
    moments: int

    @property
    def workers(self) -> int:
        """Accelerators in all."""
        return self.data * self.tensor * self.pipeline

    @property
    def padding(self) -> float:
        """By which factor a step takes longer because the global batch does not divide evenly."""
        return self.data * self.micro_batch * self.micro_steps / self.global_batch

    @property
    def bubble(self) -> float:
        """By which factor a step takes longer because pipeline stages wait for their first and last micro-batch
        (Narayanan et al. 2021, arXiv 2104.04473, without interleaving)."""
        return 1.0 + (self.pipeline - 1) / self.micro_steps


def layout(spec: JobSpec, shape: Shape, wanted: Wanted, moments: int) -> Layout | tuple[Problem, ...]:
    """The layout, or everything that makes it impossible."""
    nodes = wanted.nodes or spec.nodes.desired or spec.nodes.maximum
    workers = nodes * spec.nodes.proc_per_node
    if problems := tuple(_problems(spec, shape, wanted, workers)):
        return problems
    data = workers // (wanted.tensor * wanted.pipeline)
    training = spec.training
    micro, steps = batches.split(training.global_batch_size, data, training.micro_batch_size)
    declared: Offload = "optimizer" if spec.deepspeed.offload_optimizer == "cpu" else "none"
    assert spec.data is not None
    return Layout(
        nodes=nodes,
        per_node=spec.nodes.proc_per_node,
        data=data,
        tensor=wanted.tensor,
        pipeline=wanted.pipeline,
        stage=spec.deepspeed.stage if wanted.stage is None else wanted.stage,
        offload=wanted.offload or declared,
        recompute=wanted.recompute or ("full" if training.activation_checkpointing else "none"),
        micro_batch=micro,
        micro_steps=steps,
        global_batch=training.global_batch_size,
        length=spec.data.sequence_length,
        element=4 if training.precision == "fp32" else 2,
        moments=moments,
    )


def _problems(spec: JobSpec, shape: Shape, wanted: Wanted, workers: int) -> Iterator[Problem]:
    tensor, pipeline = wanted.tensor, wanted.pipeline
    if spec.data is None:
        yield Problem("spec.data.sequenceLength", None, "it is not known", "Give spec.data: memory depends on it")
    for field, count in (("heads", shape.heads), ("key/value heads", shape.kv_heads), ("width", shape.hidden)):
        if count % tensor:
            remedy = f"Take a divisor of {shape.kv_heads}"
            yield Problem("--tensor-parallel", tensor, f"it does not divide the model's {count} {field}", remedy)
            break
    if pipeline > shape.layers:
        text = f"the model has only {shape.layers} layers for that many pipeline stages"
        yield Problem("--pipeline-parallel", pipeline, text, f"Take at most {shape.layers}")
    if workers % (tensor * pipeline):
        text = f"{tensor} x {pipeline} (tensor x pipeline) does not divide the {workers} workers"
        yield Problem("--nodes", workers, text, f"Take a multiple of {tensor * pipeline} workers in all")
    data, batch = max(1, workers // (tensor * pipeline)), spec.training.global_batch_size
    if batch < data:
        text = f"it gives {data} data-parallel replicas less than a sequence each"
        yield Problem("spec.training.globalBatchSize", batch, text, f"Raise it to at least {data}, or take fewer nodes")
    elif (tensor > 1 or pipeline > 1) and batch % data:
        text = f"{data} data-parallel replicas do not divide it"
        yield Problem("spec.training.globalBatchSize", batch, text, f"Take a multiple of {data}")
    yield from _of_stage(spec, wanted)


def _of_stage(spec: JobSpec, wanted: Wanted) -> Iterator[Problem]:
    stage = spec.deepspeed.stage if wanted.stage is None else wanted.stage
    if wanted.offload == "parameters" and stage != 3:
        yield Problem("--offload", "parameters", "only ZeRO 3 shards parameters, so only it can", "Add --stage 3")
    if wanted.offload == "optimizer" and stage == 0:
        yield Problem("--offload", "optimizer", "ZeRO 0 has nothing to offload", "Add --stage 1, 2 or 3")
    if wanted.pipeline > 1 and stage > 1:
        text = f"gradients (ZeRO {stage}) cannot be sharded under a pipeline, whose stages accumulate them"
        yield Problem("--pipeline-parallel", wanted.pipeline, text, "Add --stage 1 or 0")
