"""A member's part in the pre-flight check: it measures its node when told to, and helps others to measure theirs.

The node is measured by a process of its own (`measuring.py`), so that whatever hangs or runs out of memory there can be
left behind; the network from here, against another member's agent (`exchange.py`). All has an end after
`recovery.preflight.seconds`, counted from when that process has imported torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Check, Preflight
from llmtrain_trainer.agent.environment import Environment
from llmtrain_trainer.agent.exchange import Responder, measure
from llmtrain_trainer.agent.redaction import redactor
from llmtrain_trainer.flash.protocol import PeerGone

log = logging.getLogger(__name__)

IMPORTS_LIMIT: Final = 120.0
"""Seconds for the process to import torch, which this one has done before, and to find the accelerators."""
SHARE: Final = 0.1
"""Of the time, for each figure: several of them take longer than they should on a bad node."""
NODE_SHARE: Final = 0.8
"""Of the time, for all figures but the network's."""
STEPS: Final = ("device", "matmul", "memory", "disk")
"""What the process prints, in this order."""
KILL_TIMEOUT: Final = 2.0
MAX_ERROR: Final = 500


def open_preflight(environment: Environment) -> NodeCheck | None:
    """None if the job asks for none."""
    settings = (environment.spec.get("recovery") or {}).get("preflight") or {}
    return NodeCheck(environment, float(settings.get("seconds", 10))) if settings.get("enabled") else None


class NodeCheck:
    """For the whole life of a member. `offer` is what it reports until it has measured something."""

    def __init__(self, environment: Environment, seconds: float) -> None:
        self._seconds = seconds
        self._responder = Responder(environment.host)
        self._responder.start()
        self.offer = Preflight(port=self._responder.port, key=self._responder.key)

    def run(self, check: Check, called_away: Callable[[], bool]) -> Preflight | None:
        """What was found, also if that is an error; None if `called_away` said so, which waits a moment each time."""
        began = time.monotonic()
        found: dict[str, Any] = {}
        error = _measure_node(found, self._seconds, called_away)
        if error is None:
            return None
        if check.neighbour and not error:
            found |= self._measure_network(check)
        result = dataclasses.replace(
            self.offer, attempt=check.attempt, seconds=round(time.monotonic() - began, 2), error=error, **found
        )
        log.info("pre-flight %s", {k: v for k, v in dataclasses.asdict(result).items() if k not in ("port", "key")})
        return result

    def _measure_network(self, check: Check) -> dict[str, Any]:
        """The figure, and with whom; 0 where there is no way to the neighbour, which others have."""
        assert check.neighbour is not None
        try:
            figure = measure(check.neighbour, self._seconds * SHARE)
        except PeerGone as gone:
            return {"network": 0.0, "neighbour": f"{check.neighbour.pod}: {gone}"}
        return {"network": figure and _short(figure), "neighbour": check.neighbour.pod}


def _measure_node(found: dict[str, Any], seconds: float, called_away: Callable[[], bool]) -> str | None:
    """Fill in the figures. Returns what went wrong, empty if nothing did; None if called away meanwhile."""
    directory = os.environ.get(names.ENV_DATA_CACHE) or tempfile.gettempdir()
    arguments = str(seconds * SHARE), directory, str(os.getpid())
    command = [sys.executable, "-u", "-m", "llmtrain_trainer.agent.measuring", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        with process.stdout:
            return _listen(process.stdout.fileno(), found, seconds * NODE_SHARE, called_away)
    finally:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a disk that does not answer holds it
            process.wait(KILL_TIMEOUT)


def _listen(pipe: int, found: dict[str, Any], seconds: float, called_away: Callable[[], bool]) -> str | None:
    limit, heard = time.monotonic() + IMPORTS_LIMIT, b""
    while not called_away():
        if select.select([pipe], [], [], 0)[0]:
            if not (news := os.read(pipe, 4096)):
                return f"the process that measures ended before {_next(found)}; the pod's log has its words"
            *lines, heard = (heard + news).split(b"\n")
            for line in (line for line in lines if line.startswith(b'{"')):
                found |= {name: _short(value) for name, value in json.loads(line).items()}
                limit = limit if len(found) > 1 else time.monotonic() + seconds
            if "error" in found:
                return redactor().text(str(found.pop("error")))[:MAX_ERROR]
            if len(found) == len(STEPS):
                return ""
        elif time.monotonic() > limit:
            return f"{_next(found)} was not done after {seconds if found else IMPORTS_LIMIT:.0f} s"
    return None


def _next(found: Mapping[str, Any]) -> str:
    return next(step for step in STEPS if step not in found)


def _short(value: Any) -> Any:
    """As many digits of a figure as tell something."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
