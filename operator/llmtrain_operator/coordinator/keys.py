"""The keys by which the members of a round know each other. Pure.

They follow from a secret that all replicas of the coordinator share, so that a round has the same key whoever leads;
they go to authenticated agents only, and into no status.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac

from llmtrain_operator.contract.wire import Directive, Publish


def with_keys(publish: Publish, secret: bytes) -> Publish:
    """The same directives, each round with its key."""
    made: dict[int, Directive] = {}  # members of one round share a directive: so do they afterwards
    found = {}
    for uid, directive in publish.directives.items():
        if id(directive) not in made:
            made[id(directive)] = _with_key(directive, publish.job, secret)
        found[uid] = made[id(directive)]
    return Publish(publish.job, found)


def _with_key(directive: Directive, job: str, secret: bytes) -> Directive:
    if directive.round is None:
        return directive
    uids = ",".join(member.uid for member in directive.round.members)
    key = hmac.new(secret, f"{job} {directive.round.number} {uids}".encode(), hashlib.sha256).hexdigest()
    return dataclasses.replace(directive, round=dataclasses.replace(directive.round, key=key))
