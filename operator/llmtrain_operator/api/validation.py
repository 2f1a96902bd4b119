"""What is wrong with a spec beyond its schema: unknown DeepSpeed keys, contradictions, templates that break members.

Pure. Nothing here raises for a bad spec: every finding is a `Problem` that names the field, the value and the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a spec. `path` is as the user wrote it: `spec.deepspeed.config.zero_optimisation`."""

    path: str
    value: Any
    message: str
    remedy: str
