"""The parts of a job's spec that the trainer needs, as frozen records.

The spec arrives validated and with defaults filled in by the operator; the defaults here serve runs without one.
Unknown fields are ignored, so that an operator one minor newer can drive this image. A missing or ill-typed field is
a `ConfigError` that names it as the user wrote it (`spec.training.maxSteps`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NewType, TypeVar

from llmtrain_operator.contract import names, uris
from llmtrain_trainer.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
Seconds = NewType("Seconds", float)  # in the spec a duration such as 10m or 1h30m
Interval = NewType("Interval", object)  # in the spec a duration, or "auto"; here seconds, or "auto"
Rate = NewType("Rate", int)  # in the spec a quantity such as 200Mi; bytes per second
EverySteps = NewType("EverySteps", object)  # in the spec a number of steps, or "auto"
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_COUNT = {"minimum": 1}


@dataclass(frozen=True, slots=True)
class Architecture:
    """An open decoder-only transformer; None means the usual value for `hidden_size` and `heads`."""

    hidden_size: int = field(metadata=_COUNT)
    layers: int = field(metadata=_COUNT)
    heads: int = field(metadata=_COUNT)
    kv_heads: int | None = None
    intermediate_size: int | None = None
    tie_embeddings: bool = True
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class Model:
    """Exactly one field is set. `config` is a Hugging Face config, `pretrained` a path or URI of a model."""

    preset: str | None = None
    architecture: Architecture | None = None
    config: dict[str, Any] | None = None
    pretrained: str | None = None


@dataclass(frozen=True, slots=True)
class Data:
    """Where the text lies and how it becomes samples of `sequence_length` + 1 tokens."""

    source: str
    include: tuple[str, ...] = ()
    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    text_field: str = "text"
    tokenizer: str = "byte"
    sequence_length: int = field(default=256, metadata=_COUNT)
    validation_fraction: float = 0.01
    shuffle: bool = True


@dataclass(frozen=True, slots=True)
class Optimizer:
    """`lr` is the peak that the schedule scales."""

    type: Literal["AdamW", "SGD"] = "AdamW"
    lr: float = 3e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Warm-up from 0 over `warmup_steps`, then `type` down to `min_lr_ratio` of the peak at the last step."""

    type: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = 0
    min_lr_ratio: float = 0.1


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`every_steps` 0: only after the last step. `max_batches` global batches of validation data at most."""

    every_steps: int = 0
    max_batches: int = field(default=8, metadata=_COUNT)


@dataclass(frozen=True, slots=True)
class Training:
    """Batch sizes are in sequences; `micro_batch_size` bounds what one worker holds at once (None: a usual bound)."""

    max_steps: int = field(metadata=_COUNT)
    global_batch_size: int = field(default=8, metadata=_COUNT)
    micro_batch_size: int | None = field(default=None, metadata=_COUNT)
    precision: Precision = "bf16"
    seed: int = 42
    gradient_clipping: float = 1.0
    activation_checkpointing: bool = False
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    evaluation: Evaluation = Evaluation()


@dataclass(frozen=True, slots=True)
class DeepSpeed:
    """`config` is passed through to DeepSpeed but for the keys that the typed fields manage."""

    stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: Literal["none", "cpu"] = "none"
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Durable:
    """Checkpoints go to `storage` at least `every` so often and every `every_steps` steps; `keep` of them stay.

    `bandwidth`: most bytes per second that a worker writes.
    """

    storage: str
    every: Interval = Interval(600.0)
    every_steps: int | None = field(default=None, metadata=_COUNT)
    keep: int = field(default=3, metadata=_COUNT)
    bandwidth: Rate | None = None

    @property
    def interval(self) -> float | None:
        """Seconds between checkpoints, None: to be chosen by what they cost."""
        every: object = self.every
        return every if isinstance(every, float) else None


@dataclass(frozen=True, slots=True)
class Flash:
    """Snapshots in memory every `every_steps` steps, or "auto"; `replicas` copies in other members' memory, at most
    every `replicate_every` steps. `max_overhead`: the share of the time that "auto" may spend on them."""

    enabled: bool = True
    every_steps: EverySteps = EverySteps(1)
    replicas: int = field(default=1, metadata={"minimum": 0})
    replicate_every: int | None = field(default=None, metadata=_COUNT)
    max_overhead: float = 0.03


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`restore_from` is another job's storage or a Hugging Face model: where a job without a checkpoint starts."""

    flash: Flash = Flash()
    durable: Durable | None = None
    restore_from: str | None = None


@dataclass(frozen=True, slots=True)
class Recovery:
    """`numerics`: what the operator does when training goes wrong. Where there is none, a run that fails just ends."""

    numerics: Literal["fail", "rollback", "rollbackAndSkip"] = "fail"


@dataclass(frozen=True, slots=True)
class TensorBoard:
    """Event files in `dir`."""

    dir: str


@dataclass(frozen=True, slots=True)
class WeightsAndBiases:
    """`dir`: where the run's files are, None: in the pod."""

    project: str
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"
    dir: str | None = None
    base_url: str | None = None


@dataclass(frozen=True, slots=True)
class SwanLab:
    """`dir`: where the run's files are, None: in the pod."""

    project: str
    workspace: str | None = None
    mode: Literal["online", "offline"] = "online"
    dir: str | None = None
    host: str | None = None


@dataclass(frozen=True, slots=True)
class MLflow:
    """`tracking_uri`: a server's, or a path or URI of a folder."""

    tracking_uri: str
    experiment: str = "llmtrain"


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where a point goes of every `every_steps` steps."""

    every_steps: int = field(default=1, metadata=_COUNT)
    tensorboard: TensorBoard | None = None
    wandb: WeightsAndBiases | None = None
    swanlab: SwanLab | None = None
    mlflow: MLflow | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """One job. `digest` is the SHA-256 of the spec that it came from."""

    model: Model
    data: Data
    training: Training
    deepspeed: DeepSpeed = DeepSpeed()
    checkpoint: Checkpoint = Checkpoint()
    recovery: Recovery = Recovery()
    tracking: Tracking | None = None
    output: str | None = None
    digest: str = ""


def parse(text: str) -> Config:
    """The config in a job's spec as JSON. Raises `ConfigError`."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"spec: not JSON: {error}") from error
    canonical = json.dumps(raw, sort_keys=True, separators=(",", ":"))
    config = dataclasses.replace(from_dict(Config, raw, "spec"), digest=hashlib.sha256(canonical.encode()).hexdigest())
    chosen = [name for name in ("preset", "architecture", "config", "pretrained") if getattr(config.model, name)]
    if len(chosen) != 1:
        raise ConfigError(
            f"spec.model: {' and '.join(chosen) or 'none'} given; "
            "give exactly one of preset, architecture, config, pretrained"
        )
    return config


def local_path(uri: str, path: str) -> str:
    """Where the URI of field `path` lies in this pod. Raises `ConfigError`."""
    try:
        return uris.local_path(uri, os.environ.get(names.ENV_VOLUMES) or names.VOLUME_ROOT)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


T = TypeVar("T")


def from_dict(kind: type[T], raw: Any, path: str) -> T:
    """A dataclass from an object with camelCase keys; null stands for a field's default. Raises `ConfigError`."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: {raw!r} is not an object")
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]  # T is one of this module's dataclasses
        key = _camel(item.name)
        given = raw.get(key)
        if given is not None:
            values[item.name] = _value(hints[item.name], given, f"{path}.{key}", item.metadata.get("minimum"))
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{path}.{key}: missing; it has no default")
    return kind(**values)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _seconds(raw: Any, path: str) -> Seconds:
    if not re.fullmatch(r"([0-9]+(\.[0-9]+)?(ms|s|m|h))+", raw if isinstance(raw, str) else ""):
        raise ConfigError(f"{path}: {raw!r} is not a duration such as 30s, 10m or 1h30m")
    parts = re.findall(r"([0-9.]+)(ms|s|m|h)", raw)
    return Seconds(sum(float(number) * _UNITS[unit] for number, unit in parts))


def _every_steps(raw: Any, path: str) -> EverySteps:
    if raw != "auto" and (type(raw) is not int or raw < 1):
        raise ConfigError(f"{path}: {raw!r} is neither a positive number of steps nor auto")
    return EverySteps(raw)


def _interval(raw: Any, path: str) -> Interval:
    return Interval(raw if raw == "auto" else _seconds(raw, path))


def _rate(raw: Any, path: str) -> Rate:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kMGT]?|[KMGT]i)", raw if isinstance(raw, str) else "")
    if found is None or not float(found[1]):
        raise ConfigError(f"{path}: {raw!r} is not a number of bytes such as 200Mi")
    power = " KMGT".index(found[2][:1].upper() or " ")
    return Rate(int(float(found[1]) * (1024 if found[2].endswith("i") else 1000) ** power))


_PARSERS: Final[dict[Any, Callable[[Any, str], Any]]] = {
    Seconds: _seconds,
    Interval: _interval,
    Rate: _rate,
    EverySteps: _every_steps,
}


def _value(kind: Any, raw: Any, path: str, minimum: int | None = None) -> Any:
    if kind in _PARSERS:
        return _PARSERS[kind](raw, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _value(next(each for each in arguments if each is not types.NoneType), raw, path, minimum)
    if origin is Literal:
        if raw not in arguments:
            raise ConfigError(f"{path}: {raw!r} is none of {', '.join(map(str, arguments))}")
        return raw
    if origin is tuple and isinstance(raw, list):
        return tuple(_value(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(raw))
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast("type[Any]", kind), raw, path)
    if kind is float and type(raw) is int:
        raw = float(raw)
    if type(raw) is not (origin or kind):
        raise ConfigError(f"{path}: {raw!r} is not of type {getattr(kind, '__name__', kind)}")
    if minimum is not None and raw < minimum:
        raise ConfigError(f"{path}: {raw} is less than {minimum}")
    return raw
