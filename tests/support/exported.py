"""The names of the metrics that operator and members export, as queries spell them."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest

from llmtrain_operator.metrics import Metrics
from llmtrain_trainer.agent.environment import Environment
from llmtrain_trainer.agent.exposition import MemberCollector
from llmtrain_trainer.agent.membership import Membership
from llmtrain_trainer.agent.metrics import Book

_SUFFIXES: Final = {"histogram": ("_bucket", "_sum", "_count"), "gauge": ("",), "counter": ("",)}


def member_text(book: Book, job: str = "ns/job", index: int = 0) -> bytes:
    """What a member with this book exports, in Prometheus' text format."""
    here = Environment(job, "pod", "u", index, 1, "127.0.0.1", 1, ("wss://c:1",), "", Path("token"), 5, {})
    registry = CollectorRegistry()
    registry.register(MemberCollector(here, Membership(here), book))
    return generate_latest(registry)


@functools.cache
def exported() -> frozenset[str]:
    """What a new operator process and a new member export, whether or not it has samples yet."""
    text = Metrics().text().decode() + member_text(Book()).decode()
    found = re.findall(r"^# TYPE (llmtrain_\w+) (\w+)$", text, re.MULTILINE)
    return frozenset(f"{name}{suffix}" for name, kind in found for suffix in _SUFFIXES[kind])
