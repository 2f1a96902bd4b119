"""`deepspeed.config`: keys that DeepSpeed does not know (it would ignore most of them silently), keys that it no
longer supports, and values that contradict the typed fields.

Pure. The typed fields govern: a managed key may repeat what they say, or be "auto", and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from llmtrain_operator.api.deepspeed_keys import DEEPSPEED_VERSION, KNOWN, REMOVED
from llmtrain_operator.api.problem import Problem, unknown_key
from llmtrain_operator.api.spec import JobSpec

_PATH: Final = "spec.deepspeed.config"
_AUTO: Final = "auto"
_ONE_BATCH: Final = {"gradient_allreduce_op": "mean", "managed_gradient_accumulation": True}
"""Keys with the only value at which a step is one update by the mean over the global batch, at any world size."""
_MODEL_PARALLEL: Final = ("tensor_parallel", "expert_parallel", "sequence_parallel_size", "data_parallel_size")


def _children() -> dict[str, set[str]]:
    children: dict[str, set[str]] = {}
    for path in (*KNOWN, *REMOVED):
        parent, _, key = path.rpartition(".")
        children.setdefault(parent, set()).add(key)
    return children


_CHILDREN: Final = _children()


def check(spec: JobSpec) -> Iterator[Problem]:
    """Everything wrong with `spec.deepspeed.config`."""
    config = spec.deepspeed.config
    yield from _keys(config, "")
    if spec.entrypoint is None:
        yield from _contradictions(spec)
        yield from _unscaled_fp16(spec)
        for key, needed in _ONE_BATCH.items():
            if config.get(key, needed) != needed:
                why = "what a step does would depend on the number of workers"
                yield Problem(f"{_PATH}.{key}", config[key], why, "Remove it")
        for key in _MODEL_PARALLEL:
            if key in config:
                yield Problem(f"{_PATH}.{key}", config[key], "this version trains data-parallel only", "Remove it")


def _unscaled_fp16(spec: JobSpec) -> Iterator[Problem]:
    if spec.training.precision == "fp16" and spec.deepspeed.stage == 0:
        yield Problem(
            "spec.deepspeed.stage",
            0,
            f"in fp16 at stage 0 DeepSpeed {DEEPSPEED_VERSION} divides gradients by a loss scale that it never applied",
            "Use stage 1, 2 or 3, or spec.training.precision bf16",
        )


def _keys(config: Mapping[str, Any], prefix: str) -> Iterator[Problem]:
    known = _CHILDREN.get(prefix)
    if known is None:  # DeepSpeed does not say what may stand in this block
        return
    base = f"{_PATH}.{prefix}" if prefix else _PATH
    for key, value in config.items():
        path = f"{prefix}.{key}" if prefix else key
        if path in REMOVED:
            yield Problem(f"{base}.{key}", value, f"DeepSpeed {DEEPSPEED_VERSION}: {REMOVED[path]}", "Remove it")
        elif key not in known:
            yield unknown_key(base, key, value, known, f"DeepSpeed {DEEPSPEED_VERSION}'s {prefix or 'configuration'}")
        elif isinstance(value, Mapping):
            yield from _keys(value, path)
        elif path in _CHILDREN:
            yield Problem(f"{base}.{key}", value, "it is a block of settings", f"Write {key}: {{...}}, or remove it")


def _contradictions(spec: JobSpec) -> Iterator[Problem]:
    config = spec.deepspeed.config
    for path, governor, expected in _governed(spec):
        value = _lookup(config, path)
        if value is None or value in (_AUTO, expected):
            continue
        yield Problem(
            f"{_PATH}.{path}",
            value,
            f"{governor} decides this, and says {'otherwise' if expected is None else repr(expected)}",
            f"Remove it and set spec.{governor}",
        )


def _governed(spec: JobSpec) -> Iterator[tuple[str, str, Any]]:
    """Keys that a typed field decides: path, that field, and the value it has (None: a value of its own form)."""
    training, deepspeed = spec.training, spec.deepspeed
    yield "train_batch_size", "training.globalBatchSize", training.global_batch_size
    yield "train_micro_batch_size_per_gpu", "training.microBatchSize", training.micro_batch_size
    # The accumulation follows the number of workers, which may change.
    yield "gradient_accumulation_steps", "training.globalBatchSize", None
    yield "gradient_clipping", "training.gradientClipping", training.gradient_clipping
    for key in ("fp16", "bf16"):
        yield f"{key}.enabled", "training.precision", training.precision == key
    yield "bfloat16.enabled", "training.precision", training.precision == "bf16"
    yield "optimizer", "training.optimizer", None
    yield "scheduler", "training.schedule", None
    yield "zero_optimization.stage", "deepspeed.stage", deepspeed.stage
    yield "zero_optimization.offload_optimizer.device", "deepspeed.offloadOptimizer", deepspeed.offload_optimizer


def _lookup(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
