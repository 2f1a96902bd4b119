"""What the controller says on the control socket. Pure.

`Publish` goes as a `Bundle`: each directive once, with the pods that it is for. A directive names all members of its
round, so that repeating it for each of them would grow with their square: at a thousand members 130 MB instead of
130 KB.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from llmtrain_operator.contract import codec
from llmtrain_operator.contract.wire import Check, Directive, Publish


@dataclass(frozen=True, slots=True)
class Lead:
    """The controller leads, for certain up to `until` on the clock that both processes share (`clock.boot_time`)."""

    until: float


@dataclass(frozen=True, slots=True)
class Group:
    """One directive and the UIDs of the pods that it is for."""

    directive: Directive
    uids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A job's directives, grouped."""

    job: str
    groups: tuple[Group, ...]


Key = tuple[str, str, int | None, str, Check | None]


def key_of(directive: Directive) -> Key:
    """Directives of one job with equal keys are equal: a round's number is never given to another round."""
    number = directive.round.number if directive.round else None
    return directive.action, directive.reason, number, directive.persist, directive.check


def same(old: Publish, new: Publish) -> bool:
    """Whether both say the same. Compares keys: comparing all members for each member takes seconds at a thousand."""
    return {uid: key_of(d) for uid, d in old.directives.items()} == {
        uid: key_of(d) for uid, d in new.directives.items()
    }


def pack(publish: Publish) -> str:
    """The text for the socket."""
    uids: dict[Key, list[str]] = {}
    directives = {}
    for uid, directive in publish.directives.items():
        key = key_of(directive)
        uids.setdefault(key, []).append(uid)
        directives[key] = directive
    return codec.encode(Bundle(publish.job, tuple(Group(directives[key], tuple(found)) for key, found in uids.items())))


def unpack(text: str | bytes) -> Publish | Lead:
    """What the controller said. Raises `WireError`."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise codec.WireError(f"not JSON: {error}") from error
    if isinstance(raw, dict) and "until" in raw:
        return codec.from_dict(Lead, raw)
    bundle = codec.from_dict(Bundle, raw)
    return Publish(bundle.job, {uid: group.directive for group in bundle.groups for uid in group.uids})
