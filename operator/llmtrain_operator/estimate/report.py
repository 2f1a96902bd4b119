"""All that is estimated of one job, as facts with their reasons. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from llmtrain_operator import quantity
from llmtrain_operator.api import JobSpec
from llmtrain_operator.api.problem import Problem
from llmtrain_operator.contract.accelerators import ACCELERATORS, Accelerator, find
from llmtrain_operator.estimate import activations, figures, pace, stores
from llmtrain_operator.estimate.compute import OPTIMAL_TOKENS, Flops, misconfigured, per_token, training_flops
from llmtrain_operator.estimate.figures import Fact
from llmtrain_operator.estimate.fit import pod_memory, remedy
from llmtrain_operator.estimate.layout import Layout, Wanted, layout
from llmtrain_operator.estimate.memory import Memory, memory, reduce_bucket
from llmtrain_operator.estimate.prior import accelerator_of
from llmtrain_operator.estimate.shape import Shape, shape_of


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked beside the spec. `tokens`: to train on, in place of training.maxSteps; `vocabulary`: of the
    tokenizer; `price`: per accelerator and hour, in any currency; `mfu`, `tera_flops`: see `pace.rate`."""

    wanted: Wanted = field(default_factory=Wanted)
    accelerator: str | None = None
    tokens: float | None = None
    vocabulary: int | None = None
    price: float | None = None
    mfu: float | None = None
    tera_flops: float | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """`sections`: title -> facts. `warnings`: what is probably wrong. `fits`: None if nobody can say."""

    sections: Mapping[str, tuple[Fact, ...]]
    warnings: tuple[str, ...]
    fits: bool | None


@dataclass(frozen=True, slots=True)
class _Case:
    """Everything that the sections are made of."""

    spec: JobSpec
    asked: Question
    shape: Shape
    plan: Layout
    kind: Accelerator | None
    cost: Flops
    needs: Memory

    @property
    def on_accelerator(self) -> bool:
        return self.kind is not None or self.spec.nodes.accelerator_resource is not None

    @property
    def steps(self) -> int | None:
        if self.asked.tokens is not None:
            return -(-int(self.asked.tokens) // (self.plan.global_batch * self.plan.length))
        return self.spec.training.max_steps

    @property
    def tokens(self) -> float | None:
        if self.asked.tokens is not None:
            return self.asked.tokens
        return self.steps * self.plan.global_batch * self.plan.length if self.steps else None


def estimate(spec: JobSpec, asked: Question) -> Estimate | tuple[Problem, ...]:
    """The estimate of a valid spec, or why there is none."""
    case = _case(spec, asked)
    if not isinstance(case, _Case):
        return case
    memory_facts, fits = _memory(case)
    sections = {"model": tuple(_model(case)), "layout": tuple(_layout(case)), "memory": memory_facts}
    timed, warnings = _time(case)
    sections |= {"time": timed, "checkpoints": tuple(_checkpoints(case))}
    return Estimate(sections, warnings, fits)


def _case(spec: JobSpec, asked: Question) -> _Case | tuple[Problem, ...]:
    if spec.entrypoint and spec.model is None:
        remedy = "Add spec.model and spec.data for the estimate; the script is not affected by them"
        return (Problem("spec.model", None, "a script of your own says nothing about its model", remedy),)
    shape = shape_of(spec, asked.vocabulary)
    if shape is None:
        return (_unknown_model(spec),)
    kind = find(asked.accelerator) if asked.accelerator else accelerator_of(spec)
    if asked.accelerator and kind is None:
        known = ", ".join(each.name for each in ACCELERATORS)
        return (Problem("--accelerator", asked.accelerator, "it is not known", f"Take one of {known}"),)
    plan = layout(spec, shape, asked.wanted, stores.moments(spec))
    if not isinstance(plan, Layout):
        return plan
    host = kind is None and not spec.nodes.accelerator_resource
    needs = memory(shape, plan, reduce_bucket(spec), on_host=host)
    return _Case(spec, asked, shape, plan, kind, per_token(shape, plan.length, plan.recompute), needs)


def _unknown_model(spec: JobSpec) -> Problem:
    if spec.model and spec.model.pretrained:
        text = "its size is known only when it is there"
        return Problem("spec.model.pretrained", spec.model.pretrained, text, "Put its config.json in spec.model.config")
    config = dict(spec.model.config or {}) if spec.model else {}
    missing = "hidden_size" if not any(key in config for key in ("hidden_size", "n_embd", "d_model")) else ""
    field = missing or "num_hidden_layers"
    return Problem(f"spec.model.config.{field}", None, "it is absent", "Add it: the estimate takes no defaults")


def _model(case: _Case) -> Iterator[Fact]:
    shape, plan = case.shape, case.plan
    why = "exact" if shape.exact else "an upper bound; give --vocabulary, or vocab_size, if the tokenizer is known"
    yield figures.count("parameters", shape.parameters, why)
    yield figures.count("active per token", shape.active, "in matrices that multiply; look-ups and idle experts do not")
    note = f"6 x active + 12 x layers x width x length; attention is {case.cost.attention / case.cost.model:.0%}"
    yield figures.count("model FLOPs per token", case.cost.model, note)
    if plan.recompute != "none":
        yield figures.count("hardware FLOPs per token", case.cost.hardware, f"with {plan.recompute} recomputation")
    optimal = OPTIMAL_TOKENS * shape.parameters
    yield figures.count("compute-optimal tokens", optimal, "20 x parameters (Hoffmann et al. 2022)")
    if case.tokens:
        source = "--tokens" if case.asked.tokens else "training.maxSteps x globalBatchSize x sequenceLength"
        yield figures.count("tokens", case.tokens, f"{source}: {case.tokens / optimal:.2g} x compute-optimal")
        rule = training_flops(shape.parameters, case.tokens, plan.recompute)
        name = "8ND" if plan.recompute == "full" else "6ND"
        yield figures.count("FLOPs in all", case.cost.hardware * case.tokens, f"{name} alone says {rule:.3g}")
    cache = activations.kv_cache(shape, plan.length)
    yield figures.size("KV cache", cache, f"for generating one sequence of {plan.length} tokens in 16 bits")


def _layout(case: _Case) -> Iterator[Fact]:
    plan = case.plan
    yield figures.count("accelerators", plan.workers, f"{plan.nodes} members x {plan.per_node} workers")
    if plan.tensor > 1 or plan.pipeline > 1:
        parts = f"{plan.data} data x {plan.tensor} tensor x {plan.pipeline} pipeline"
        yield figures.word("parallelism", parts, "what if: the operator's own trainer does data parallelism only")
    uneven = f"; {plan.padding - 1:.1%} of it padding" if plan.padding > 1 else ""
    each = f"{plan.micro_steps} x {plan.micro_batch}"
    yield figures.word("sequences per step", each, f"of {plan.length} tokens on each replica{uneven}")
    yield figures.word("ZeRO", str(plan.stage), f"offload: {plan.offload}; recomputation: {plan.recompute}")


def _memory(case: _Case) -> tuple[tuple[Fact, ...], bool | None]:
    facts = (*_parts(case), *_published(case), *_host(case))
    if case.kind is None:
        return facts, None
    needed, there = case.needs.peak, case.kind.memory
    share = f"{needed / there:.0%} of the {case.kind.name}'s {there / 1e9:.0f} GB"
    fits = needed <= there
    return (*facts, figures.word("fits", fits, share if fits else f"{share}: {remedy(case.plan)}")), fits


def _parts(case: _Case) -> Iterator[Fact]:
    needs, plan = case.needs, case.plan
    replicas = f"ZeRO {plan.stage} over {plan.data}" if plan.data > 1 else "one replica"
    yield figures.size("weights", needs.weights, replicas)
    yield figures.size("gradients", needs.gradients, replicas)
    kept = "masters and moments" if needs.optimizer else "in host memory"
    yield figures.size("optimizer state", needs.optimizer, f"fp32; {kept}")
    yield figures.size("buffers", needs.buffers, "DeepSpeed's reduce bucket")
    yield figures.size("activations", needs.activations, f"fused attention, {plan.recompute} recomputation")
    logits = f"log-softmax over {case.shape.vocabulary:,} tokens in fp32, and gradients"
    yield figures.size("around the loss", needs.loss, logits)
    place = "accelerator" if case.on_accelerator else "worker"
    yield figures.size(f"peak per {place}", needs.peak, f"when {needs.moment}; not all of the above at once")


def _published(case: _Case) -> Iterator[Fact]:
    """What the paper has for activations, to compare with."""
    shape, plan = case.shape, case.plan
    ways = {"activations, published": False} | ({"the same, sequence parallel": True} if plan.tensor > 1 else {})
    for name, sequence_parallel in ways.items():
        layer = activations.published(
            shape.hidden,
            shape.heads,
            plan.length,
            plan.micro_batch,
            plan.tensor,
            plan.recompute,
            sequence_parallel=sequence_parallel,
        )
        whole = layer * activations.layers_held(shape, plan)
        yield figures.size(name, whole, "of a GPT with plain attention in 16 bits (Korthikanti et al. 2022)")


def _host(case: _Case) -> Iterator[Fact]:
    needs, plan = case.needs, case.plan
    if needs.host:
        yield figures.size("host, offloaded", needs.host * plan.per_node, f"{plan.per_node} workers per member")
    why = "while loading, each worker has the whole model in fp32" if case.on_accelerator else "all its workers"
    pod = pod_memory(needs, plan, on_accelerator=case.on_accelerator)
    yield figures.size("host memory per pod", pod, f"{why}; libraries included, snapshots not")


def _time(case: _Case) -> tuple[tuple[Fact, ...], tuple[str, ...]]:
    if case.kind is None:
        why = "name the accelerator with --accelerator (its peak is not known from the spec)"
        return (figures.word("time", "unknown", why),), ()
    rate = pace.rate(case.kind, case.cost, case.asked.mfu, case.asked.tera_flops)
    step = pace.step_seconds(case.plan, case.cost, rate.hardware)
    peak = f"{rate.share:.1%} of the {case.kind.name}'s {case.kind.peak / 1e12:.0f}"
    facts = [
        Fact("achieved", rate.hardware, "FLOP/s", f"{rate.hardware / 1e12:.0f} TFLOP/s", f"{peak}; {rate.reason}"),
        Fact("MFU", rate.mfu, "", f"{rate.mfu:.1%}", "model FLOPs alone"),
        figures.time("step", step, "computation at that rate"),
    ]
    if case.steps:
        whole = case.steps * step
        facts.append(figures.time("training", whole, f"{case.steps:,} steps, without losses or pauses"))
        hours = case.plan.workers * whole / 3600
        facts.append(Fact("accelerator hours", hours, "hours", f"{hours:,.0f}"))
        if case.asked.price is not None:
            cost = pace.price(case.plan, whole, case.asked.price)
            facts.append(Fact("cost", cost, "", f"{cost:,.0f}", f"at {case.asked.price:g} per accelerator and hour"))
    given = case.asked.mfu is not None or case.asked.tera_flops is not None
    doubt = misconfigured(case.kind, rate.hardware) if given else ""
    above = f"{rate.share:.0%} of the peak cannot be reached" if rate.share > 1 else ""
    return tuple(facts), tuple(text for text in (doubt, above) if text)


def _checkpoints(case: _Case) -> Iterator[Fact]:
    spec, plan = case.spec, case.plan
    state = stores.state_bytes(spec, case.asked.vocabulary) or 0
    yield figures.size("durable checkpoint", state, "fp32 masters and moments, each once")
    yield figures.size("exported model", _MODEL_ELEMENT * case.shape.parameters, "fp32 safetensors")
    flash = spec.checkpoint.flash
    if flash.enabled:
        given = quantity.parse(flash.memory) if flash.memory else None
        size = given or stores.flash_bytes(spec) or 0
        why = "checkpoint.flash.memory" if given else f"{flash.replicas} copies; added to the pod's request and limit"
        yield figures.size("flash store per pod", size, why)
        step = None
        if case.kind:
            rate = pace.rate(case.kind, case.cost, case.asked.mfu, case.asked.tera_flops)
            step = pace.step_seconds(plan, case.cost, rate.hardware)
        host = not case.on_accelerator
        cadence, stall = pace.snapshots(spec, plan, step, on_accelerator=not host)
        yield figures.count("steps between snapshots", cadence.snapshot, cadence.reason)
        yield figures.time("copying a snapshot", stall, "an assumed 5 GB/s" if host else "an assumed 20 GB/s")
    if interval := pace.durable_interval(spec, plan):
        yield figures.time("between durable checkpoints", interval[0], interval[1])


_MODEL_ELEMENT = 4
