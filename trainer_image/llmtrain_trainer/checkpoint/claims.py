"""Whose turn it is to write to a storage: numbered claims, of which the highest holds. Pure.

Each round of a job claims the storage before it writes there. A claim names the job and the round, so that a leftover
of an earlier round cannot take the storage back, and the jobs that had it before, so that two living jobs with the same
storage do not take it from each other in turn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from llmtrain_trainer.checkpoint.manifest import PLAIN, Damaged, seal, unseal

_NAME: Final = re.compile(r"fence-(\d{8,})\.json")
_REMEMBERED: Final = 100
_UNREADABLE: Final = -1


@dataclass(frozen=True, slots=True)
class Claim:
    """`token` tells two claimants apart that are otherwise alike; `superseded` are UIDs of jobs that had it before."""

    number: int
    job_uid: str
    round: int
    token: str
    superseded: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Where it is stored."""
        return f"fence-{self.number:08d}.json"


def number_of(name: str) -> int | None:
    """The number of the claim stored as `name`, None if that is no claim."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def encode(claim: Claim) -> bytes:
    """The file's bytes."""
    return seal(
        {
            "formatVersion": PLAIN,
            "number": claim.number,
            "jobUid": claim.job_uid,
            "round": claim.round,
            "token": claim.token,
            "superseded": claim.superseded,
        }
    )


def decode(data: bytes, number: int) -> Claim:
    """Claim number `number`. One that is damaged still counts, but says nothing. Raises `NewerFormat`."""
    nameless = Claim(number, "", _UNREADABLE, "")
    try:
        content = unseal(data, nameless.name)
    except Damaged:
        return nameless
    match content:
        case {"jobUid": str(job), "round": int(round_number), "token": str(token), "superseded": [*others]}:
            return Claim(number, job, round_number, token, tuple(map(str, others)))
    return nameless


def follow(newest: Claim | None, job_uid: str, round_number: int, token: str) -> tuple[Claim | None, str]:
    """The claim that comes after `newest`, or None and why this round may not have the storage."""
    if newest is None:
        return Claim(1, job_uid, round_number, token), ""
    if newest.job_uid == job_uid and newest.round > round_number:
        return None, f"round {newest.round} of this job has claimed it, this is round {round_number}"
    if job_uid in newest.superseded:
        return None, (
            f"job {newest.job_uid} has taken it over from this one; give this job a storage of its own, or delete the "
            f"other job and then {newest.name}"
        )
    others = newest.superseded if newest.job_uid in (job_uid, "") else (*newest.superseded, newest.job_uid)
    return Claim(newest.number + 1, job_uid, round_number, token, others[-_REMEMBERED:]), ""


def standing(mine: Claim, newest: Claim | None) -> Literal["holds", "gone", "followed"]:
    """What has become of a claim, now that `newest` is the newest.

    "gone": the storage was lost and made again, and nobody has a better right to it. Numbers begin anew then, so that
    a lower one is not an earlier one.
    """
    if newest == mine:
        return "holds"
    if newest is None:
        return "gone"
    earlier = newest.number < mine.number and newest.job_uid == mine.job_uid and newest.round <= mine.round
    return "gone" if earlier else "followed"
