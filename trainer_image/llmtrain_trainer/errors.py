"""Errors of the trainer, and how they reach the agent.

An error is written as torch elastic's error file (the JSON of torch.distributed.elastic's own ErrorHandler, plus
`reason`, `step` and `samples` in extraInfo), so that torchrun and our agent both show it. Limit: a process killed by a
signal writes nothing; its exit status is all there is.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
import traceback
from pathlib import Path
from typing import Any

from llmtrain_operator.contract import names, wire

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|DefaultCPUAllocator", re.IGNORECASE)
_PEER_LOST = re.compile(r"gloo|connection (closed|reset|refused)|broken pipe|NCCL|TCPStore", re.IGNORECASE)


class TrainerError(Exception):
    """Training cannot go on. `reason` is one of `names.REASON_*`, the message says what to change."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Diverged(TrainerError):  # noqa: N818 - it says what happened
    """Training has gone wrong in a batch of `samples`, if it was a batch that did it."""

    def __init__(self, reason: str, message: str, samples: wire.Samples) -> None:
        super().__init__(reason, message)
        self.samples = samples


class ConfigError(TrainerError):
    """The job's spec asks for something impossible; the message begins with the field's path."""

    def __init__(self, message: str) -> None:
        super().__init__(names.REASON_INVALID_CONFIG, message)


def reason_of(error: BaseException) -> str:
    """The `names.REASON_*` that an exception stands for. Libraries tell some causes only by their message."""
    if isinstance(error, TrainerError):
        return error.reason
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return names.REASON_OUT_OF_MEMORY
    if isinstance(error, RuntimeError | ConnectionError) and _PEER_LOST.search(text):
        return names.REASON_PEER_LOST
    return names.REASON_USER_ERROR


def message_of(error: BaseException) -> str:
    """The error in its own words, with a remedy where the library gives none."""
    text = str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"
    if reason_of(error) == names.REASON_OUT_OF_MEMORY:
        return (
            f"{text}\nout of memory: lower training.microBatchSize or data.sequenceLength, set "
            "training.activationCheckpointing, raise deepspeed.stage or set deepspeed.offloadOptimizer: cpu"
        )
    return text


def write_error_file(error: BaseException, step: int) -> None:
    """Leave the error where torch elastic asks for it (TORCHELASTIC_ERROR_FILE), if it does."""
    target = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not target:
        return
    details: dict[str, Any] = {
        "py_callstack": "".join(traceback.format_exception(error)),
        "timestamp": str(int(time.time())),
        "reason": reason_of(error),
        "step": step,
    }
    if isinstance(error, Diverged):
        details["samples"] = dataclasses.asdict(error.samples)
    Path(target).write_text(json.dumps({"message": {"message": message_of(error), "extraInfo": details}}))
