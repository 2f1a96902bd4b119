"""Which nodes fall short of their peers, by what their agents have measured.

Pure. A node is judged by the others of its job, never by an absolute figure: by the median of their figures, so that a
few bad ones among them change little. Where all fall short, in whatever ways, nobody is the bad one and none is named.
The network is measured between two, so that a bad one spoils its neighbour's figure as well; that is why a verdict
takes `ATTEMPTS` checks in a row, each with another neighbour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Final

from llmtrain_operator.contract.wire import Preflight
from llmtrain_operator.peers import median_without

ATTEMPTS: Final = 2
"""Checks that a node may fail, or that may fail themselves, until it is rejected."""
FIGURES: Final[Mapping[str, tuple[str, str]]] = {
    "matmul": ("matmul", "TFLOP/s"),
    "memory": ("memory bandwidth", "GB/s"),
    "network": ("all-reduce with a neighbour", "MB/s"),
    "disk": ("disk", "MB/s"),
}
"""The fields that are compared: what each is called, and its unit."""


def shortfalls(found: Mapping[str, Preflight], tolerance: float) -> dict[str, str]:
    """What is wrong with each of these that is, in words; who has not measured anything yet is passed over.

    `tolerance`: the share of its peers' median below which a figure is bad.
    """
    failed = {uid: f"the check failed: {known.error}" for uid, known in found.items() if known.error}
    measured = {uid: known for uid, known in found.items() if known.attempt and not known.error}
    short: dict[str, list[str]] = {}
    for field in FIGURES:
        for uid, words in _below(measured, field, tolerance).items():
            short.setdefault(uid, []).append(words)
    if len(short) == len(measured):
        return failed
    return failed | {uid: "; ".join(words) for uid, words in short.items()}


def medians(found: Iterable[Preflight]) -> str:
    """What the nodes can do, as a list of figures."""
    known = list(found)
    columns = ((field, [v for one in known if (v := _figure(one, field)) is not None]) for field in FIGURES)
    return ", ".join(f"{FIGURES[field][0]} {_shown(median(values), field)}" for field, values in columns if values)


def _below(measured: Mapping[str, Preflight], field: str, tolerance: float) -> dict[str, str]:
    values = {uid: value for uid, known in measured.items() if (value := _figure(known, field)) is not None}
    ordered = sorted(values.values())
    found = {}
    for uid, value in values.items():
        peers = median_without(ordered, value)
        if peers is not None and value < tolerance * peers:
            what = f"{FIGURES[field][0]}{_of_what(measured[uid], field)} {_shown(value, field)}"
            found[uid] = f"{what}, its peers' median is {_shown(peers, field)}"
    return found


def _figure(known: Preflight, field: str) -> float | None:
    value: float | None = getattr(known, field)
    return value


def _of_what(known: Preflight, field: str) -> str:
    of = {"matmul": known.device, "memory": known.device, "network": known.neighbour}.get(field)
    return f" ({of})" if of else ""


def _shown(value: float, field: str) -> str:
    return f"{value:.3g} {FIGURES[field][1]}" if value < 100 else f"{value:.0f} {FIGURES[field][1]}"
