"""What the operator tells a pod through its environment, and what follows for the workers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain_operator.contract import names

REFERENCE_TRAINER = "llmtrain_trainer.train"
_PYTHON = (sys.executable, "-u")


class EnvironmentIncomplete(Exception):  # noqa: N818 - says what happened
    """This process was not started by the operator, or by a much older one: end with the message."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A member's identity and its way to the coordinator."""

    job: str
    pod: str
    uid: str
    index: int
    incarnation: int
    host: str
    procs: int
    coordinators: tuple[str, ...]
    ca: str
    token_file: Path
    grace: int
    spec: Mapping[str, Any]
    job_uid: str = ""
    flash: Path | None = None
    metrics_port: int = 0

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Environment:
        """From the variables of `names.ENV_*`. Raises `EnvironmentIncomplete` naming the one that is wrong."""
        return cls(
            job=_text(environ, names.ENV_JOB),
            pod=_text(environ, names.ENV_POD_NAME),
            uid=_text(environ, names.ENV_POD_UID),
            index=_number(environ, names.ENV_INDEX),
            incarnation=_number(environ, names.ENV_INCARNATION),
            host=_text(environ, names.ENV_POD_IP),
            procs=_number(environ, names.ENV_PROC_PER_NODE, "1"),
            coordinators=tuple(url.strip() for url in _text(environ, names.ENV_COORDINATOR).split(",")),
            ca=environ.get(names.ENV_COORDINATOR_CA, ""),
            token_file=Path(_text(environ, names.ENV_TOKEN_FILE)),
            grace=_number(environ, names.ENV_GRACE_SECONDS, "25"),
            spec=_spec(environ),
            job_uid=environ.get(names.ENV_JOB_UID, ""),
            flash=Path(environ[names.ENV_FLASH]) if environ.get(names.ENV_FLASH) else None,
            metrics_port=_number(environ, names.ENV_METRICS_PORT, "0"),
        )


def worker_command(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The command of a worker: the user's script or module, else the reference trainer."""
    entrypoint: Mapping[str, Any] = spec.get("entrypoint") or {}
    return *worker_program(spec), *(str(argument) for argument in entrypoint.get("args") or ())


def worker_program(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The same without its arguments."""
    entrypoint: Mapping[str, Any] = spec.get("entrypoint") or {}
    if script := entrypoint.get("script"):
        return *_PYTHON, script
    return *_PYTHON, "-m", entrypoint.get("module") or REFERENCE_TRAINER


def runs_reference_trainer(spec: Mapping[str, Any]) -> bool:
    """Whether the workers are ours, which know how to save and leave."""
    return worker_program(spec) == (*_PYTHON, "-m", REFERENCE_TRAINER)


def forkable(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """What a zygote can be for: our trainer, or a script. Empty for a module of the user's: what it needs is not known
    without importing it, which is for the workers."""
    program = worker_program(spec)[len(_PYTHON) :]
    return program if program[0] != "-m" or runs_reference_trainer(spec) else ()


def threads_per_worker(procs: int) -> int:
    """This worker's share of the CPUs that the container may use, at least 1."""
    return max(1, int(_cpus()) // procs)


def _cpus(limit_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    available = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = limit_file.read_text().split()
    except (OSError, ValueError):
        return available
    return available if quota == "max" else min(available, int(quota) / int(period))


def _text(environ: Mapping[str, str], name: str, default: str | None = None) -> str:
    value = environ.get(name) or default
    if value is None:
        raise EnvironmentIncomplete(f"{name} is not set; the operator sets it in the pods that it creates")
    return value


def _number(environ: Mapping[str, str], name: str, default: str | None = None) -> int:
    value = _text(environ, name, default)
    try:
        return int(value)
    except ValueError as error:
        raise EnvironmentIncomplete(f"{name}={value!r} is not a whole number") from error


def _spec(environ: Mapping[str, str]) -> Mapping[str, Any]:
    text = environ.get(names.ENV_SPEC, "{}")
    try:
        spec: Mapping[str, Any] = json.loads(text)
    except ValueError as error:
        raise EnvironmentIncomplete(f"{names.ENV_SPEC} is not JSON: {error}") from error
    return spec
