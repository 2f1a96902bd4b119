"""A worker's end as a `Failure`: from its error file, else from its exit status and last words.

The error file is torch elastic's JSON, of `@record` or of our trainer, which adds `reason`, `step` and `samples`. It
may be missing, cut off or of another shape; then the exit status tells. Secrets of the environment are taken out.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_operator.contract.codec import WireError, from_dict
from llmtrain_operator.contract.wire import Failure, Samples
from llmtrain_trainer.agent.redaction import redactor

MAX_MESSAGE: Final = 2_000
MAX_TRACEBACK: Final = 16_000
_REASONS: Final = frozenset(value for name, value in vars(names).items() if name.startswith("REASON_"))


def first_to_fail(exits: Mapping[int, int], error_files: Mapping[int, Path]) -> int:
    """Of the local ranks that failed, the one to blame: the first to leave an error file, else killed, else lowest.

    `exits` are exit codes by local rank, negative for signals.
    """

    def order(local_rank: int) -> tuple[float, bool, int]:
        try:
            when = error_files[local_rank].stat().st_mtime
        except (KeyError, OSError):
            when = float("inf")
        return when, exits[local_rank] >= 0, local_rank

    return min(exits, key=order)


def describe(exit_code: int, error_file: str, stderr: str, *, round_number: int, rank: int, step: int) -> Failure:
    """The failure of a worker that ended with `exit_code`; `error_file` and `stderr` are texts, perhaps empty."""
    message, traceback, extra = _parse(error_file)
    if not message:
        message = _message(exit_code, stderr)
    # Before anything is cut off: the rest of a secret would not be known as one.
    message, traceback = redactor().text(message), redactor().text(traceback or stderr)
    reason = str(extra.get("reason", ""))
    if reason not in _REASONS:
        reason = names.REASON_KILLED if exit_code < 0 else names.REASON_USER_ERROR
    noted = extra.get("step")
    return Failure(
        reason=reason,
        message=message[:MAX_MESSAGE],
        round=round_number,
        rank=rank,
        step=noted if isinstance(noted, int) else step,
        exit_code=exit_code if exit_code >= 0 else None,
        signal=-exit_code if exit_code < 0 else None,
        traceback=traceback[-MAX_TRACEBACK:],
        samples=_samples(extra.get("samples")),
    )


def _samples(noted: Any) -> Samples | None:
    try:
        return None if noted is None else from_dict(Samples, noted)
    except WireError:
        return None


def _parse(text: str) -> tuple[str, str, Mapping[str, Any]]:
    """Message, traceback and extra fields of an error file; empty where it says nothing."""
    try:
        message = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        return "", "", {}
    if not isinstance(message, dict):
        return str(message), "", {}
    extra = message.get("extraInfo")
    extra = extra if isinstance(extra, dict) else {}
    return str(message.get("message", "")), str(extra.get("py_callstack", "")), extra


def _message(exit_code: int, stderr: str) -> str:
    if exit_code < 0:
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = "unknown"
        return f"killed by signal {-exit_code} ({name})"
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")
    return f"exit code {exit_code}" + (f": {last}" if last else " without a word on stderr")
