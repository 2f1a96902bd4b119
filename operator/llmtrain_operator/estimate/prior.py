"""Seconds per step before any was measured, for the autoscaler's first guess. Pure.

The step is the slowest worker's computation, the exchange of gradients and weights, and a fixed cost. What it is good
for is the shape over world sizes: the computation falls with 1 / n, in the stairs that the constant global batch makes
of it; the exchange grows towards its limit. The scale is uncertain by `Prior.factor` either way, because a spec seldom
says what accelerator or network its nodes have: the first measured step is worth more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract import batches, names
from llmtrain_operator.contract.accelerators import PRODUCT_LABELS, Accelerator, find
from llmtrain_operator.estimate.compute import USUAL_SHARE, per_token
from llmtrain_operator.estimate.shape import shape_of

_USUAL_PEAK: Final = 312e12
"""FLOP/s of an accelerator of which only the resource is known."""
_CORE: Final = 10e9
"""FLOP/s that a CPU core achieves in training; within a factor of four of what was seen."""
_NETWORK: Final = 3e9
"""Bytes per second between nodes: 25 Gbit/s, within a factor of ten of what there is."""
_FIXED: Final = 0.01
"""Seconds per step, and per micro-step, that no number of workers makes less."""


@dataclass(frozen=True, slots=True)
class Prior:
    """A guess at one step: `seconds` is `compute` + `exchange` + `fixed`. The truth is taken to lie between
    seconds / `factor` and seconds * `factor`; `reason` says what that rests on."""

    compute: float
    exchange: float
    fixed: float
    factor: float
    reason: str

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.exchange + self.fixed


def step_seconds(spec: JobSpec, members: int) -> float | None:
    """Estimated seconds per step with so many members; None if nothing can be said of the model, or a script of the
    user's own does the training."""
    known = prior(spec, members)
    return known.seconds if known else None


def prior(spec: JobSpec, members: int) -> Prior | None:
    """The guess with its parts and its uncertainty. Raises `ValueError` if `members` is below 1."""
    shape = None if spec.entrypoint or spec.data is None else shape_of(spec)
    if shape is None or spec.data is None:
        return None
    workers, training = members * spec.nodes.proc_per_node, spec.training
    micro, steps = batches.split(training.global_batch_size, workers, training.micro_batch_size)
    length = spec.data.sequence_length
    cost = per_token(shape, length, "full" if training.activation_checkpointing else "none")
    rate, factor, reason = _rate(spec)
    element = 4 if training.precision == "fp32" else 2
    # Reduce-scatter and all-gather of gradients and weights, by rings; ZeRO 3 gathers the weights twice.
    rounds = 3 if spec.deepspeed.stage == 3 else 2
    exchanged = rounds * shape.parameters * element * (members - 1) / members
    return Prior(
        compute=micro * steps * length * cost.hardware / rate,
        exchange=exchanged / _NETWORK,
        fixed=_FIXED * (1 + steps),
        factor=factor,
        reason=f"{reason}; {_NETWORK * 8 / 1e9:.0f} Gbit/s between members",
    )


def accelerator_of(spec: JobSpec) -> Accelerator | None:
    """The kind that the template's node selector asks for, None if it does not."""
    pod = spec.template.get("spec")
    selector = pod.get("nodeSelector") if isinstance(pod, Mapping) else None
    labels = selector if isinstance(selector, Mapping) else {}
    named = (find(str(labels[label])) for label in PRODUCT_LABELS if label in labels)
    return next((kind for kind in named if kind), None)


def _rate(spec: JobSpec) -> tuple[float, float, str]:
    """FLOP/s of one worker, by which factor that may be wrong, and what it rests on."""
    share = f"{USUAL_SHARE:.0%} of its peak"
    if kind := accelerator_of(spec):
        return kind.peak * USUAL_SHARE, 3.0, f"{kind.name} at {share}"
    if spec.nodes.accelerator_resource:
        return _USUAL_PEAK * USUAL_SHARE, 10.0, f"an unknown accelerator, taken for one of 312 TFLOP/s, at {share}"
    cores = _cores(spec) / spec.nodes.proc_per_node
    return cores * _CORE, 10.0, f"{cores:g} CPU cores for each worker at {_CORE / 1e9:.0f} GFLOP/s"


def _cores(spec: JobSpec) -> float:
    """CPU cores that a member asks for, one if it does not say."""
    for kind in ("limits", "requests"):
        if asked := _number(resource(spec, kind, "cpu")):
            return asked
    return 1.0


def resource(spec: JobSpec, kind: str, name: str) -> Any:
    """What the template gives the trainer's container, such as `limits` of `memory`; None if it does not say."""
    pod = spec.template.get("spec")
    containers = pod.get("containers") if isinstance(pod, Mapping) else None
    for container in containers if isinstance(containers, list) else ():
        if isinstance(container, Mapping) and container.get("name") == names.CONTAINER:
            resources = container.get("resources")
            given = resources.get(kind) if isinstance(resources, Mapping) else None
            return given.get(name) if isinstance(given, Mapping) else None
    return None


def _number(cores: Any) -> float:
    """Cores of a quantity such as 4, "4" or "500m"; 0 for what is none."""
    text = str(cores).strip()
    try:
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError:
        return 0.0
